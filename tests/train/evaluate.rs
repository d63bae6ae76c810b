//! `mimic evaluate` on clips, by the embedded model.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::data::clip;

#[test]
fn models_are_measured_by_the_clips_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let test = folder.path().join("test");
    fs::create_dir(&test).unwrap();
    fs::create_dir(folder.path().join("train")).unwrap();
    clip(&test.join("moving.mp4"), "80x64", 3);
    clip(&test.join("one-frame.mp4"), "64x64", 1);
    fs::write(test.join("corrupt.mp4"), [7; 5000]).unwrap();
    // A drawn face at rest is drawn again nearly as it was.
    let driver = crate::common::file("assets/driver.mp4");
    let still = test.join("still.mp4");
    crate::data::ffmpeg(&[
        "-i",
        driver.to_str().unwrap(),
        "-frames:v",
        "2",
        "-an",
        still.to_str().unwrap(),
    ]);
    let output = folder.path().join("out");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mimic"));
        command
            .arg("evaluate")
            .arg(folder.path())
            .arg("-o")
            .arg(&output);
        command.args(more).output().unwrap()
    };
    // A network for which red and green are x and y of a landmark, and one for which the mean colour is who it is.
    let fixture = |name: &str| crate::common::file("tests/fixtures/onnx").join(name);
    let (landmarks, identity) = (fixture("red-and-green.onnx"), fixture("mean-colour.onnx"));
    let networks = [
        ["--landmarks-onnx", landmarks.to_str().unwrap()],
        ["--identity-onnx", identity.to_str().unwrap()],
        ["--identity-input", "unit"],
    ];
    let result = run(&[&["--json"], networks.concat().as_slice()].concat());
    let said = String::from_utf8_lossy(&result.stderr).into_owned();
    assert!(result.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&result.stdout).unwrap();
    assert!(report["protocol"].as_str().unwrap().contains("first frame"));
    let model = &report["models"][0];
    assert_eq!(
        (model["model"].as_str(), model["size"].as_u64()),
        (Some("mimic-small"), Some(256))
    );
    assert_eq!(model["scores"]["frames"], 6);
    assert_eq!(model["clips"].as_object().unwrap().len(), 3);
    let of = |clip: &str, what: &str| model["clips"][clip][what].as_f64().unwrap();
    assert!(
        of("still", "l1") < 0.05 && of("still", "ssim") > 0.8,
        "{model:#}"
    );
    assert!(of("moving", "l1") > of("still", "l1") && of("moving", "jitter") > 0.0);
    assert_eq!(of("one-frame", "jitter"), 0.0);
    // In pixels of 256: the mean red and green of a drawn face at rest are nearly those of the face.
    assert!(of("still", "akd") < 10.0 && of("moving", "akd") > 0.0);
    assert!((0.0..0.2).contains(&of("still", "aed")) && of("moving", "aed") <= 2.0);
    assert!(of("still", "milliseconds") > 0.0 && model["clips"]["still"]["lpips"].is_null());
    assert_eq!(model["worst"].as_array().unwrap().last().unwrap(), "still");
    assert!(report["left_out"]["corrupt.mp4"].is_string(), "{report:#}");
    let table = fs::read_to_string(output.join("evaluation.md")).unwrap();
    assert!(
        table.contains("| mimic-small | 6 |") && table.contains("corrupt.mp4"),
        "{table}"
    );
    assert!(table.contains("| SSIM | AKD | AED | jitter |"), "{table}");
    assert_eq!(
        serde_json::from_slice::<Value>(&fs::read(output.join("evaluation.json")).unwrap())
            .unwrap(),
        report
    );
    let video =
        mimic::media::clip::open(&output.join("worst-mimic-small.mp4"), &Default::default())
            .unwrap();
    assert_eq!((video.info().width, video.info().height), (768, 256));
}

#[test]
fn folders_that_cannot_be_measured_by_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = |data: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mimic"));
        command
            .arg("evaluate")
            .arg(folder.path().join(data))
            .arg("-o")
            .arg(folder.path().join("out"));
        let result = command.args(more).output().unwrap();
        assert!(!result.status.success());
        assert!(!folder.path().join("out/evaluation.json").exists());
        String::from_utf8_lossy(&result.stderr).into_owned()
    };
    assert!(run("nowhere", &[]).contains("no such folder"));
    fs::create_dir_all(folder.path().join("a/train")).unwrap();
    assert!(run("a", &[]).contains("no test/"));
    fs::create_dir(folder.path().join("a/test")).unwrap();
    let said = run("a", &[]);
    assert!(said.contains("no clip to measure by"), "{said}");
    fs::write(folder.path().join("a/test/corrupt.mp4"), [7; 5000]).unwrap();
    let said = run("a", &[]);
    assert!(said.contains("not one of its clips"), "{said}");
    clip(&folder.path().join("a/test/good.mp4"), "64x64", 1);
    let said = run("a", &["--squeezenet", "a/no.pth", "--lpips", "a/no.pth"]);
    assert!(said.contains("no.pth"), "{said}");
    let corrupt = folder.path().join("a/test/corrupt.mp4");
    let said = run("a", &["--identity-onnx", corrupt.to_str().unwrap()]);
    assert!(said.contains("corrupt.mp4: this is no ONNX file"), "{said}");
    let said = run("a", &["--landmarks-input", "unit"]);
    assert!(said.contains("--landmarks-onnx"), "{said}");
    let said = run("a", &["--weights", "a/no.safetensors"]);
    assert!(said.contains("no.safetensors"), "{said}");
}
