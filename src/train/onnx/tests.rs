//! Networks of three operations, written in protobuf's wire format here.

use image::Rgba;

use super::*;

/// A message: fields of numbers, bytes and messages.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn with(self, field: u64, message: &Self) -> Self {
        self.bytes(field, &message.0)
    }
}

/// `ValueInfoProto` of floats; 0 for a size that is not fixed.
fn value(name: &str, dims: &[u64]) -> Message {
    let shape = dims.iter().fold(Message::default(), |shape, dim| {
        let dim = match dim {
            0 => Message::default().bytes(2, b"any"),
            _ => Message::default().number(1, *dim),
        };
        shape.with(1, &dim)
    });
    let tensor = Message::default().number(1, 1).with(2, &shape);
    let of_type = Message::default().with(1, &tensor);
    Message::default()
        .bytes(1, name.as_bytes())
        .with(2, &of_type)
}

/// `NodeProto`.
fn node(op: &str, inputs: &[&str], output: &str) -> Message {
    let inputs = inputs.iter().fold(Message::default(), |node, name| {
        node.bytes(1, name.as_bytes())
    });
    inputs
        .bytes(2, output.as_bytes())
        .bytes(3, output.as_bytes())
        .bytes(4, op.as_bytes())
}

/// `TensorProto` of floats.
fn constant(name: &str, dims: &[u64], values: &[f32]) -> Message {
    let dims = dims
        .iter()
        .fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    dims.number(2, 1).bytes(8, name.as_bytes()).bytes(9, &raw)
}

/// `ModelProto` with one input "picture" and one output "out".
fn model(input: &[u64], nodes: &[Message], constants: &[Message], output: &[u64]) -> Vec<u8> {
    let mut graph = Message::default();
    for node in nodes {
        graph = graph.with(1, node);
    }
    graph = graph.bytes(2, b"tiny");
    for constant in constants {
        graph = graph.with(5, constant);
    }
    graph = graph
        .with(11, &value("picture", input))
        .with(12, &value("out", output));
    let opset = Message::default().bytes(1, b"").number(2, 13);
    Message::default()
        .number(1, 7)
        .with(7, &graph)
        .with(8, &opset)
        .0
}

/// The mean of each channel, as a vector (1, 3).
fn means(input: &[u64]) -> Vec<u8> {
    let nodes = [
        node("GlobalAveragePool", &["picture"], "pooled"),
        node("Flatten", &["pooled"], "out"),
    ];
    model(input, &nodes, &[], &[1, 3])
}

/// Red and green as x and y of one landmark, times a factor.
fn red_and_green(factor: f32) -> Vec<u8> {
    let nodes = [
        node("Conv", &["picture", "weight"], "two"),
        node("GlobalAveragePool", &["two"], "pooled"),
        node("Flatten", &["pooled"], "out"),
    ];
    let weight = [factor, 0.0, 0.0, 0.0, factor, 0.0];
    let weight = constant("weight", &[2, 3, 1, 1], &weight);
    model(&[1, 3, 8, 16], &nodes, &[weight], &[1, 2])
}

/// A heat-map of how red it is.
fn redness() -> Vec<u8> {
    let nodes = [node("Conv", &["picture", "weight"], "out")];
    let weight = constant("weight", &[1, 3, 1, 1], &[1.0, 0.0, 0.0]);
    model(&[1, 3, 8, 16], &nodes, &[weight], &[1, 1, 8, 16])
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn landmarks(bytes: &[u8]) -> Result<LandmarkNetwork, String> {
    LandmarkNetwork::open(file(bytes).path(), Scaling::Unit).map_err(|e| e.to_string())
}

fn plain(colour: [u8; 3]) -> RgbaImage {
    let [r, g, b] = colour;
    RgbaImage::from_pixel(32, 32, Rgba([r, g, b, 255]))
}

#[test]
fn landmarks_are_read_in_pixels_and_shares() {
    let near = |a: Points, b: [f64; 2]| {
        assert!(
            a.len() == 1 && (a[0][0] - b[0]).abs() < 1e-5 && (a[0][1] - b[1]).abs() < 1e-5,
            "{a:?}"
        );
    };
    let picture = plain([51, 102, 0]);
    near(
        landmarks(&red_and_green(1.0))
            .unwrap()
            .points(&picture)
            .unwrap(),
        [0.2, 0.4],
    );
    // In pixels of 16x8.
    let pixels = landmarks(&red_and_green(10.0))
        .unwrap()
        .points(&picture)
        .unwrap();
    near(pixels, [2.0 / 16.0, 4.0 / 8.0]);
    let signed = landmarks(&red_and_green(-1.0))
        .unwrap()
        .points(&picture)
        .unwrap();
    near(signed, [0.4, 0.3]);
}

#[test]
fn the_peak_of_a_heat_map_is_found_between_its_cells() {
    let network = landmarks(&redness()).unwrap();
    let mut picture = RgbaImage::new(16, 8);
    picture.put_pixel(5, 3, Rgba([200, 0, 0, 255]));
    picture.put_pixel(6, 3, Rgba([200, 0, 0, 255]));
    let found = network.points(&picture).unwrap();
    assert!((found[0][0] - 6.0 / 16.0).abs() < 1e-6, "{found:?}");
    assert!((found[0][1] - 3.5 / 8.0).abs() < 1e-6, "{found:?}");
}

#[test]
fn identities_have_length_one_in_either_layout() {
    let network = file(&means(&[0, 3, 8, 8]));
    let network = IdentityNetwork::open(network.path(), Scaling::Bytes).unwrap();
    let vector = network.vector(&plain([30, 0, 40])).unwrap();
    let distance = identity_distance(&vector, &[0.6, 0.0, 0.8]).unwrap();
    assert!(distance < 1e-6, "{vector:?}");
    let other = network.vector(&plain([0, 200, 0])).unwrap();
    let distance = identity_distance(&vector, &other).unwrap();
    assert!((distance - 2f64.sqrt()).abs() < 1e-6, "{distance}");
}

#[test]
fn distances_of_landmarks_are_means_along_both_axes() {
    let (a, b) = (vec![[0.0, 0.0], [1.0, 0.5]], vec![[0.1, 0.0], [1.0, 0.2]]);
    assert!((keypoint_distance(&a, &b).unwrap() - 0.1).abs() < 1e-12);
    assert_eq!(keypoint_distance(&a, &a), Some(0.0));
    assert_eq!(keypoint_distance(&a, &vec![[f64::NAN; 2]; 2]), None);
    assert_eq!(keypoint_distance(&a, &vec![[0.0; 2]]), None);
}

#[test]
fn networks_that_do_not_fit_are_refused_in_one_sentence() {
    let bad_op = model(
        &[1, 3, 8, 8],
        &[node("Levitate", &["picture"], "out")],
        &[],
        &[1, 2],
    );
    let whole = red_and_green(1.0);
    let looped = model(
        &[1, 3, 8, 8],
        &[node("Relu", &["nothing"], "out")],
        &[],
        &[1, 2],
    );
    let cases: &[(&[u8], &str)] = &[
        (&[], "cannot be used"),
        (&[7; 300], "no ONNX file"),
        (&whole[..whole.len() / 2], ""),
        (&bad_op, "'Levitate', which is not supported"),
        (&looped, ""),
        (&means(&[1, 3, 8, 8]), "landmarks are (2n)"),
        (&means(&[1, 3, 8]), "its input is (1, 3, 8)"),
        (&means(&[1, 1, 8, 8]), "its input is (1, 1, 8, 8)"),
        (&means(&[0, 3, 0, 0]), "fixed size"),
        (&means(&[1, 3, 90_000, 90_000]), "pictures of 90000x90000"),
    ];
    for (bytes, part) in cases {
        let error = landmarks(bytes).unwrap_err();
        assert!(
            error.contains(part) && error.lines().count() == 1,
            "{part}: {error}"
        );
    }
    let picture = file(&redness());
    let error = IdentityNetwork::open(picture.path(), Scaling::Unit).unwrap_err();
    assert!(
        error.to_string().contains("an identity is one vector"),
        "{error}"
    );
    let error = LandmarkNetwork::open(Path::new("/no/such.onnx"), Scaling::Unit).unwrap_err();
    assert!(error.to_string().contains("/no/such.onnx"), "{error}");
}

/// What the tests of `mimic evaluate` measure by.
#[test]
fn the_files_in_fixtures_are_these() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx");
    let networks = [
        ("red-and-green.onnx", red_and_green(1.0)),
        ("mean-colour.onnx", means(&[0, 3, 8, 8])),
    ];
    for (name, bytes) in networks {
        let path = folder.join(name);
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(
            fs::read(&path).unwrap(),
            bytes,
            "{name}: UPDATE_FIXTURES=1 writes it anew"
        );
    }
}

/// Every byte of a small file changed, one at a time.
#[test]
fn broken_files_do_not_end_the_program() {
    let whole = red_and_green(1.0);
    for at in 0..whole.len() {
        let mut broken = whole.clone();
        broken[at] ^= 0x15;
        let _ = landmarks(&broken);
    }
}
