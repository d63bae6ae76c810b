//! A C2PA manifest under the user's certificate: who made a result, and that it is generated, in a form that cannot
//! be changed unnoticed.
//!
//! mp4, PNG, JPEG and gif have a place for it, webm has none. Nothing is asked of the net: there is no time stamp,
//! and whether readers trust the certificate is their affair.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use c2pa::{Builder, Context, Reader, SigningAlg, ValidationState, create_signer};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};
use serde_json::json;

use super::error::Error;
use super::ffmpeg::one_line;
use super::provenance::{DIGITAL_SOURCE_TYPE, Provenance};

/// The largest certificate chain or key that is read.
const LARGEST: u64 = 1 << 20;

/// The kinds of keys that C2PA allows, the usual first.
const ALGORITHMS: [SigningAlg; 7] = [
    SigningAlg::Es256,
    SigningAlg::Ps256,
    SigningAlg::Es384,
    SigningAlg::Ed25519,
    SigningAlg::Es512,
    SigningAlg::Ps384,
    SigningAlg::Ps512,
];

/// A certificate and its key, tried.
pub struct Signer {
    signer: c2pa::BoxedSigner,
    certificate: PathBuf,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a chain of certificates, the signer's own first, and its private key, both PEM; signs a pixel with them
    /// and looks whether a reader takes it, so that what is wrong with them is known before there is something to
    /// sign.
    ///
    /// # Errors
    /// When the files cannot be read, are no PEM, do not belong together, or are of a certificate that C2PA does not
    /// allow.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let chain = read(certificate)?;
        let private = read(key)?;
        let wrong = |why: String| Error::Certificate {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            why,
        };
        for (path, bytes, word) in [
            (certificate, &chain, "CERTIFICATE"),
            (key, &private, "PRIVATE KEY"),
        ] {
            let text = String::from_utf8_lossy(bytes);
            if !text.contains("-----BEGIN ") || !text.contains(word) {
                return Err(wrong(format!(
                    "{} holds no {} in PEM",
                    path.display(),
                    word.to_lowercase()
                )));
            }
        }
        let mut reasons = Vec::new();
        for algorithm in ALGORITHMS {
            let Ok(signer) = create_signer::from_keys(&chain, &private, algorithm, None) else {
                continue;
            };
            let signer = Self {
                signer,
                certificate: certificate.to_owned(),
            };
            match signer.try_out() {
                Ok(()) => return Ok(signer),
                Err(why) => reasons.push(why),
            }
        }
        Err(wrong(reasons.into_iter().next().unwrap_or_else(|| {
            "the key is none that C2PA allows (ECDSA P-256, P-384, P-521, Ed25519, or RSA), as PKCS#8".to_owned()
        })))
    }

    /// Whether the format of a file has a place for a manifest.
    pub fn can_sign(file: &Path) -> bool {
        format(file).is_some()
    }

    /// Puts a manifest into a file that nobody sees yet.
    ///
    /// # Errors
    /// When the file's format has no place for one or it cannot be written.
    pub(super) fn sign(&self, file: &Path, said: Option<&Provenance>) -> Result<(), Error> {
        let failed = |why: String| Error::Sign {
            path: file.to_owned(),
            why: one_line(&why),
        };
        let format = format(file).ok_or_else(|| failed("its format has no place for it".into()))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let mut signed =
            tempfile::NamedTempFile::new_in(folder).map_err(|e| failed(e.to_string()))?;
        let mut source = File::open(file).map_err(|e| failed(e.to_string()))?;
        let rights = source.metadata().map(|file| file.permissions());
        self.builder(said)
            .and_then(|mut builder| {
                builder.sign(&*self.signer, format, &mut source, signed.as_file_mut())
            })
            .map_err(|e| failed(e.to_string()))?;
        if let Ok(rights) = rights {
            let _ = fs::set_permissions(signed.path(), rights);
        }
        signed
            .persist(file)
            .map_err(|e| failed(e.error.to_string()))?;
        Ok(())
    }

    fn builder(&self, said: Option<&Provenance>) -> c2pa::Result<Builder> {
        let generator = json!({ "name": "mimic", "version": env!("CARGO_PKG_VERSION") });
        let definition = json!({ "claim_generator_info": [generator] });
        let mut builder =
            Builder::from_context(Context::new()).with_definition(definition.to_string())?;
        builder.add_action(json!({
            "action": "c2pa.created",
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
            "softwareAgent": generator,
            "description": said.map(Provenance::comment),
        }))?;
        Ok(builder)
    }

    /// Signs a pixel and reads it.
    fn try_out(&self) -> Result<(), String> {
        let mut pixel = Vec::new();
        PngEncoder::new(&mut pixel)
            .write_image(&[0; 3], 1, 1, ExtendedColorType::Rgb8)
            .map_err(|e| e.to_string())?;
        let mut signed = Cursor::new(Vec::new());
        self.builder(None)
            .and_then(|mut builder| {
                let mut source = Cursor::new(pixel);
                builder.sign(&*self.signer, "image/png", &mut source, &mut signed)
            })
            .map_err(|e| one_line(&e.to_string()))?;
        signed.set_position(0);
        let reader = Reader::from_context(Context::new())
            .with_stream("image/png", signed)
            .map_err(|e| one_line(&e.to_string()))?;
        if reader.validation_state() != ValidationState::Invalid {
            return Ok(());
        }
        let faults = reader.validation_status().unwrap_or_default().iter();
        let faults: Vec<_> = faults
            .filter_map(|fault| match fault.code() {
                // By us, who ask nobody; that is no fault.
                "signingCredential.untrusted" => None,
                "claimSignature.mismatch" => Some("the key is not the certificate's"),
                code => Some(fault.explanation().unwrap_or(code)),
            })
            .collect();
        Err(one_line(&faults.join(", ")))
    }
}

/// The media type by the ending of a name, of formats that have a place for a manifest.
fn format(file: &Path) -> Option<&'static str> {
    let ending = file.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "mp4" => Some("video/mp4"),
        "png" => Some("image/png"),
        "jpg" | "jpeg" => Some("image/jpeg"),
        "gif" => Some("image/gif"),
        _ => None,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST).read_to_end(&mut bytes))
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}
