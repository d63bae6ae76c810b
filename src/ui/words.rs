//! Every word of the window, in each language: the compiler sees to it that none is missing.
//!
//! Plain and short, no exclamation marks; errors say what to do.

use std::path::{MAIN_SEPARATOR, Path};

use crate::settings::Language;

/// The words in the language of the settings, or of the system.
pub(super) fn words(language: Option<Language>) -> &'static Words {
    let system = || match sys_locale::get_locale() {
        Some(locale) if locale.starts_with("zh") => Language::Chinese,
        _ => Language::English,
    };
    match language.unwrap_or_else(system) {
        Language::English => &ENGLISH,
        Language::Chinese => &CHINESE,
    }
}

/// A path as the window says it: the home folder is `~`, as its name is nobody's business where a screen is shared.
pub(super) fn brief(path: &Path) -> String {
    beneath(std::env::home_dir().as_deref(), path)
}

fn beneath(home: Option<&Path>, path: &Path) -> String {
    // A home without a name, as services have, would be everybody's.
    let home = home.filter(|home| home.parent().is_some());
    match home.and_then(|home| path.strip_prefix(home).ok()) {
        Some(rest) if rest.as_os_str().is_empty() => "~".to_owned(),
        Some(rest) => format!("~{MAIN_SEPARATOR}{}", rest.display()),
        None => path.display().to_string(),
    }
}

macro_rules! words {
    ($($name:ident: $english:literal, $chinese:literal;)*) => {
        /// One language. The fields are named for what they say.
        #[derive(Debug)]
        pub(super) struct Words {
            pub(super) language: Language,
            $(pub(super) $name: &'static str,)*
        }

        const ENGLISH: Words = Words { language: Language::English, $($name: $english,)* };
        const CHINESE: Words = Words { language: Language::Chinese, $($name: $chinese,)* };

        #[cfg(test)]
        const PAIRS: &[(&str, &str, &str)] = &[$((stringify!($name), $english, $chinese),)*];
    };
}

words! {
    live: "Live", "实时";
    render: "Render", "渲染";
    models: "Models", "模型";
    train: "Train", "训练";
    help: "Keys", "快捷键";
    settings: "Settings", "设置";
    close: "Close", "关闭";

    add_photo: "Add a photo", "添加照片";
    remove_photo: "Remove from the reel", "从列表移除";
    paste_photo: "Paste from the clipboard", "从剪贴板粘贴";
    photo_number: "Photo", "照片";
    empty_reel: "Drop a photo here, paste one, or choose one with +", "将照片拖到这里、粘贴，或点击 + 选择";
    opening: "Opening the photo", "正在打开照片";

    driver: "Driver", "驱动";
    demo_driver: "Drawn performer", "内置演示";
    choose_clip: "Choose a video or picture…", "选择视频或图片…";
    choose_take: "Choose a take…", "选择动作录制…";
    no_camera: "No camera found", "未找到摄像头";
    cameras: "Cameras", "摄像头";
    look_again: "Look again for cameras", "重新查找摄像头";
    swap: "Swap driver and photo", "交换驱动与照片";
    hide_driver: "Hide the driver", "隐藏驱动画面";
    show_driver: "Show the driver", "显示驱动画面";
    matching: "match", "匹配";
    match_tip: "How close your pose is to the photo's. Relative motion counts from the best match.", "你的姿势与照片的接近程度。相对运动以最佳匹配为起点。";
    face_lost: "No face in sight", "未检测到人脸";
    waiting: "Waiting for the driver", "等待驱动画面";

    calibrate: "Calibrate", "校准";
    calibrate_tip: "Take the present pose as the one from which motion counts (C)", "以当前姿势作为运动的起点（C）";
    auto: "Auto", "自动";
    auto_tip: "Keep the frame that matches the photo best as the starting pose", "自动以最匹配的画面作为起始姿势";
    record: "Record", "录制";
    record_tip: "Record the picture, with sound where there is a microphone (R)", "录制画面；有麦克风时录制声音（R）";
    take: "Take", "动作";
    take_tip: "Record the motion alone, to play it on any photo later (T)", "只录制动作，之后可用于任何照片（T）";
    virtual_camera: "Virtual camera", "虚拟摄像头";
    virtual_camera_tip: "Show the picture to other programs as a camera (V)", "将画面作为摄像头提供给其他程序（V）";
    full_screen: "Full screen", "全屏";
    screenshot_saved: "Screenshot saved:", "截图已保存：";
    take_saved: "Take saved:", "动作已保存：";
    play_take: "Play it", "播放";
    recording_saved: "Recording saved:", "录制已保存：";

    tuning: "Tuning", "调节";
    blend: "BLEND", "融合";
    motion: "MOTION", "运动";
    show: "SHOW", "显示";
    driver_group: "DRIVER", "驱动";
    reset: "Reset", "还原";
    ratio: "Ratio", "范围";
    ratio_tip: "How much of the crop around the face moves. Drag the ring on the photo for one face.", "脸部周围随动的范围。拖动照片上的圆环可单独调节一张脸。";
    feather: "Feather", "羽化";
    feather_tip: "How softly the moving part fades into the photo.", "动态部分与照片之间过渡的柔和程度。";
    colour_match: "Colour match", "颜色匹配";
    colour_match_tip: "Shift the face's colours to meet the photo's at the edge.", "调整脸部颜色，使其在边缘与照片一致。";
    detail: "Detail", "细节";
    detail_tip: "Bring the photo's own fine detail back onto the moving face.", "将照片本身的细节还原到动态的脸上。";
    enhancement: "ENHANCEMENT", "增强";
    enhance: "Sharper faces", "清晰人脸";
    enhance_tip: "Draw each face anew, sharper. Where that takes longer than a frame, what it adds is carried over to the frames after it.", "以更清晰的方式重绘每张脸。若耗时超过一帧，其效果会随动作沿用到之后的画面。";
    enhance_strength: "Strength", "强度";
    enhance_strength_tip: "How much of the sharper face is seen.", "清晰人脸的显示程度。";
    enhance_needs: "Needs GPEN or GFPGAN: download one in Models, choose its file, or drop it here.", "需要 GPEN 或 GFPGAN：请在“模型”中下载，或选择文件，或拖到这里。";
    enhance_choose: "Choose weights…", "选择权重…";
    enhanced_every: "faces enhanced once in", "人脸增强间隔";
    enhanced_all: "faces enhanced in every frame", "每帧增强人脸";
    scale: "Scale", "幅度";
    scale_tip: "How strongly your motion is taken over: 1 as it is, 0 not at all.", "动作幅度：1 为原样，0 为不动。";
    smoothing: "Smoothing", "平滑";
    smoothing_tip: "Calm trembling down; more of it reacts a little later.", "减轻抖动；越大反应越慢。";
    relative: "Relative motion", "相对运动";
    relative_tip: "Move as you have moved, not to where you are. Keeps the photo's face its own.", "按你的位移运动，而不是移动到你的位置。可保持照片脸形。";
    adapt: "Adapt to face size", "适应脸部大小";
    adapt_tip: "Scale the motion by how large the two faces are.", "按两张脸的大小缩放动作。";
    mirror: "Mirror", "镜像";
    mirror_tip: "Left and right as in a mirror.", "像照镜子一样左右对调。";
    face_boxes: "Face boxes and ring", "脸部框与圆环";
    face_boxes_tip: "Boxes can be moved, resized, added with a double click and removed with Delete.", "可移动、缩放方框；双击添加，Delete 删除。";
    keypoints: "Keypoints", "关键点";
    keypoints_tip: "The points that the model follows, on the driver's picture.", "模型在驱动画面上跟踪的点。";
    face: "Face", "脸";

    camera: "camera", "摄像头";
    driver_rate: "driver", "驱动";
    inference: "inference", "推理";
    latency: "latency", "延迟";
    dropped: "dropped", "丢帧";
    stage_face: "finding the face", "查找脸部";
    stage_keypoints: "keypoints", "关键点";
    stage_generator: "generator", "生成";
    stage_composing: "putting together", "合成";
    on_device: "on", "运行于";
    fps: "fps", "帧/秒";
    hold: "Hold the frame rate", "保持帧率";
    hold_tip: "When this machine is too slow, quality gives way in steps: precision, then size, then a smaller model. It comes back when there is time.", "当机器太慢时逐步降低质量：先降精度，再降尺寸，再换小模型；有余力时自动恢复。";
    hold_fps: "Frames a second", "目标帧率";
    holding: "Holding", "保持";
    slower: "Slower than", "低于";
    half_size: "half size", "半尺寸";
    last_minute: "The last minute", "最近一分钟";
    strip_tip: "Click for the last minute", "点击查看最近一分钟";
    no_cuda: "No CUDA in this build: running on the", "此版本不含 CUDA：运行于";
    loading_model: "Loading the model", "正在加载模型";

    drop_photos: "Photos join the reel", "照片加入列表";
    drop_clip: "The video drives the photo", "视频将驱动照片";
    drop_take: "The take drives the photo", "动作录制将驱动照片";
    drop_both: "Photo and driver become a render job", "照片与驱动将成为渲染任务";
    drop_render: "They become render jobs", "将成为渲染任务";
    drop_enhancer: "Faces are made sharper with these weights", "将用此权重增强人脸";
    drop_model: "Weights are imported as a model", "权重文件将作为模型导入";

    renders: "Renders", "渲染任务";
    render_hint: "Drop a photo and a video or take here, or", "将照片和视频（或动作录制）拖到这里，或";
    choose_files: "choose files", "选择文件";
    render_hint_end: "· several photos make one job each", "· 多张照片会各成一个任务";
    waits_for_driver: "waits for a video or take", "等待视频或动作录制";
    waits_for_photo: "waits for a photo", "等待照片";
    forget: "Forget it", "取消等待";
    no_jobs: "Jobs are listed here. They survive a restart.", "任务会列在这里，重启后仍会保留。";
    running_jobs: "running", "进行中";
    waiting_jobs: "waiting", "等待中";
    other_driver: "Another video, picture or take…", "其他视频、图片或动作录制…";
    needs_choice: "Choose a job to see a frame of it", "选择一个任务以预览";
    cancel: "Cancel", "取消";
    retry: "Retry", "重试";
    remove: "Remove", "移除";
    open: "Open", "打开";
    show_in_folder: "Show in folder", "在文件夹中显示";
    preview: "Preview", "预览";
    render_waiting: "Render waiting jobs", "渲染等待中的任务";
    waiting_job: "waiting", "等待中";
    done_job: "done", "完成";
    frame: "frame", "帧";
    of: "of", "/";
    seconds: "s", "秒";
    left: "left", "剩余";
    frames: "frames", "帧";
    cancelled: "cancelled", "已取消";
    add_stage: "Add the photo on stage", "添加舞台上的照片";
    needs_clip: "A camera cannot drive a render job: record a take with T, or choose a video as the driver.", "摄像头不能驱动渲染任务：请按 T 录制动作，或选择视频作为驱动。";
    jobs_full: "The list of jobs is full: remove some first.", "任务列表已满：请先移除一些。";
    preview_coming: "The preview is on its way", "正在生成预览";
    writes_to: "writes to", "写入";

    model_embedded: "Comes with mimic", "随 mimic 提供";
    model_import: "Import a model…", "导入模型…";
    model_default: "In use", "使用中";
    model_use: "Use this one", "使用此模型";
    model_measure: "Measure", "测速";
    model_measuring: "Measuring", "测速中";
    more_models: "To be downloaded", "可下载的模型";
    download: "Download", "下载";
    model_here: "it is here", "已下载";
    download_waiting: "Waiting", "等待中";
    download_asking: "Asking", "正在连接";
    download_from: "From", "下载自";
    download_checking: "Checking", "正在校验";
    download_converting: "Converting", "正在转换";
    ms_a_frame: "ms a frame", "毫秒/帧";
    licence: "licence:", "许可：";
    model_licence_note: "see weights/README.md", "见 weights/README.md";
    licence_unknown: "as its publisher says", "以发布者说明为准";

    train_hint: "See how a training goes: the curves of its losses and its latest pictures, while mimic train writes them.", "查看训练进展：在 mimic train 写入的同时显示损失曲线和最新图片。";
    train_start: "Start one by", "启动训练：";
    choose_run: "Choose a run's folder…", "选择训练文件夹…";
    no_run: "There is no run in this folder yet: choose the one that mimic train writes to.", "此文件夹中还没有训练：请选择 mimic train 的输出文件夹。";
    run_gone: "The folder cannot be read; what was read before stays:", "文件夹无法读取，已读取的内容会保留：";
    run_unreadable: "A file of the run cannot be read; the rest stays:", "训练中有文件无法读取，其余内容会保留：";
    step: "step", "步数";
    latest_grid: "Latest pictures:", "最新图片：";

    language_name: "Language", "语言";
    theme: "Theme", "主题";
    dark: "Dark", "深色";
    light: "Light", "浅色";
    microphone: "Record the microphone", "录制麦克风";
    networks_on: "Networks run on", "神经网络运行于";
    output_folder: "Results go to", "结果保存到";
    choose_folder: "Choose…", "选择…";

    key_photos: "another photo", "切换照片";
    key_calibrate: "calibrate", "校准";
    key_record: "record", "录制";
    key_screenshot: "screenshot", "截图";
    key_full_screen: "full screen", "全屏";
    key_take: "record a take", "录制动作";
    key_virtual_camera: "virtual camera", "虚拟摄像头";
    key_mirror: "mirror", "镜像";
    key_driver: "hide or show the driver", "隐藏或显示驱动画面";
    key_swap: "swap driver and photo", "交换驱动与照片";
    key_paste: "paste a photo", "粘贴照片";
    key_add_face: "add a face in the middle of the photo", "在照片中央添加脸部框";
    key_face: "move, resize or slide what has the focus", "移动、缩放或调节选中项";
    key_delete: "remove the photo, the face, or the job", "移除照片、脸或任务";
    key_places: "Live, Render, Models, Train", "实时、渲染、模型、训练";
    key_tuning: "hide or show the tuning", "隐藏或显示调节面板";
    key_help: "these keys", "显示快捷键";
    key_escape: "close what is open", "关闭弹出内容";

    settings_broken: "The settings could not be read and were set aside as", "设置无法读取，已另存为";
    no_chinese_font: "No Chinese font was found on this system: install one, such as Noto Sans CJK.", "No Chinese font was found on this system: install one, such as Noto Sans CJK.";
    reel_full: "The reel is full: remove a photo first.", "列表已满：请先移除一张照片。";
    no_picture_in_clipboard: "There is no picture in the clipboard.", "剪贴板中没有图片。";
    camera_back: "The camera is back.", "摄像头已恢复。";
    photo_gone: "This photo's file is gone; it stays on stage until it is removed:", "照片文件已不存在；在移除之前仍会保留在舞台上：";
    adapter_lost: "The graphics card was lost and the window was opened again:", "显卡连接中断，窗口已重新打开：";
    restart: "Start again", "重新启动";
    inference_died: "The networks stopped:", "推理线程已停止：";
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn words_are_said_in_both_languages_and_calmly() {
        for (name, english, chinese) in PAIRS {
            assert!(!english.is_empty() && !chinese.is_empty(), "{name}");
            for text in [english, chinese] {
                assert!(!text.contains(['!', '！']), "{name}: {text}");
            }
        }
        assert_eq!(words(Some(Language::Chinese)).live, "实时");
        assert_eq!(words(Some(Language::English)).language, Language::English);
    }

    #[test]
    fn the_home_folder_is_not_named() {
        let below = |home: &str, path: &str| beneath(Some(Path::new(home)), Path::new(path));
        let deep: PathBuf = ["~", "Videos", "mimic"].iter().collect();
        assert_eq!(
            below("/home/me", "/home/me/Videos/mimic"),
            deep.to_str().unwrap()
        );
        assert_eq!(below("/home/me", "/home/me"), "~");
        assert_eq!(below("/home/me", "/home/melissa/x"), "/home/melissa/x");
        assert_eq!(below("/", "/srv/x"), "/srv/x");
        assert_eq!(below("", "output"), "output");
        assert_eq!(beneath(None, Path::new("/srv/x")), "/srv/x");
    }
}
