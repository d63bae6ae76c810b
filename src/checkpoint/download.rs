//! A published file over HTTP: from one mirror after the other, resumed where it broke off, checked before it gets
//! its name.
//!
//! Proxies are those of `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`. Redirects are followed here and not
//! by the HTTP library, because one from https to http is refused. A server is taken to send what it likes: no more
//! than the model's size is written, a server that stalls or trickles is left for the next.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ureq::Agent;
use ureq::http::{Response, StatusCode, header};
use url::Url;

use super::manifest::Model;
use super::store::{Error, Progress, Step, Store, Tell, make_folder_of, say};

/// Redirects that are followed in a row.
const MOST_REDIRECTS: usize = 10;

/// How long a server is waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// For the connection, for the answer, and for each piece of the body.
    pub silence: Duration,
    /// Within each of these spans ...
    pub span: Duration,
    /// ... so many bytes have to come.
    pub bytes: u64,
    /// Transfers from a mirror that may break off in a row without a byte of progress.
    pub tries: u32,
    /// Pause before a transfer is taken up again.
    pub pause: Duration,
}

impl Default for Patience {
    /// 30 seconds, and a kilobyte a second.
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            span: Duration::from_secs(60),
            bytes: 60_000,
            tries: 3,
            pause: Duration::from_secs(1),
        }
    }
}

/// Why a mirror did not give the file.
enum Trouble {
    /// The transfer broke off: it can be resumed.
    BrokenOff(String),
    /// What was there before is of no use: from the start, at the same mirror.
    FromTheStart,
    /// This mirror is no good.
    NoGood(String),
    /// It has nothing to do with the mirror.
    Ours(Error),
}

/// What is remembered of a transfer, for resuming it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Part {
    /// The address that was asked.
    url: String,
    /// What the server calls this version of the file, for `If-Range`.
    validator: Option<String>,
    /// Size of the whole.
    total: Option<u64>,
}

/// Fetches the publisher's file of a model and gives its path and its sha256; one that is there already is checked
/// and kept. The caller holds the model's lock.
///
/// # Errors
/// When no mirror has it, when it is another file than the first time, when the folder cannot be written to or the
/// disk is full; [`Error::Cancelled`].
pub fn original(
    store: &Store,
    model: &Model,
    patience: &Patience,
    tell: &mut Tell<'_>,
) -> Result<(PathBuf, String), Error> {
    let whole = store.original(model);
    if whole.is_file() {
        match store.check(model, &whole, tell) {
            Ok(hash) => return Ok((whole, hash)),
            Err(Error::NotThis { .. }) => {
                fs::remove_file(&whole).map_err(write_error(&whole))?;
            }
            Err(error) => return Err(error),
        }
    }
    let part = store.download(model, "part");
    make_folder_of(&part)?;
    make_folder_of(&whole)?;
    let agent = agent(patience);
    let mut reasons = Vec::new();
    let mut changed = None;
    for mirror in &model.mirrors {
        let transfer = Transfer {
            store,
            model,
            mirror,
            patience,
            agent: &agent,
            part: &part,
        };
        let reason = match transfer.run(tell) {
            Ok(resumed) => match transfer.judge(resumed, tell)? {
                Verdict::Right(hash) => {
                    fs::rename(&part, &whole).map_err(write_error(&whole))?;
                    forget(&part, true);
                    return Ok((whole, hash));
                }
                Verdict::Wrong(why) => why,
                Verdict::Changed(error) => {
                    changed.get_or_insert(error);
                    "it has another file than the one that was here first".to_owned()
                }
            },
            Err(Trouble::Ours(error)) => return Err(error),
            Err(Trouble::BrokenOff(why) | Trouble::NoGood(why)) => why,
            Err(Trouble::FromTheStart) => "it does not say what it sends".to_owned(),
        };
        tracing::info!("{}: {mirror}: {reason}", model.name);
        reasons.push(format!("{}: {reason}", host(mirror)));
    }
    Err(changed.unwrap_or_else(|| Error::Unreachable {
        name: model.name.clone(),
        reasons: reasons.join("; "),
    }))
}

/// What a finished transfer is.
enum Verdict {
    Right(String),
    Wrong(String),
    Changed(Error),
}

/// From one mirror into the file of what is on its way.
struct Transfer<'a> {
    store: &'a Store,
    model: &'a Model,
    mirror: &'a str,
    patience: &'a Patience,
    agent: &'a Agent,
    part: &'a Path,
}

impl Transfer<'_> {
    /// Transfers until the file is whole; says whether it was put together of what came at two times.
    fn run(&self, tell: &mut Tell<'_>) -> Result<bool, Trouble> {
        let mut tries = 0;
        let mut restarted = false;
        loop {
            let before = self.offset();
            match self.once(tell) {
                Ok(resumed) => return Ok(resumed),
                Err(Trouble::FromTheStart) if !restarted => {
                    forget(self.part, false);
                    restarted = true;
                }
                Err(Trouble::BrokenOff(why)) => {
                    tries = if self.offset() > before { 0 } else { tries + 1 };
                    if tries >= self.patience.tries {
                        return Err(Trouble::BrokenOff(why));
                    }
                    tracing::info!("{}: {why}, resuming", self.model.name);
                    self.rest(tell).map_err(Trouble::Ours)?;
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// Looks at the finished file. If it is wrong and was put together of what came at two times, this mirror is
    /// asked once more, for all of it.
    fn judge(&self, resumed: bool, tell: &mut Tell<'_>) -> Result<Verdict, Error> {
        let verdict = match self.store.check(self.model, self.part, tell) {
            Ok(hash) => return Ok(Verdict::Right(hash)),
            Err(Error::NotThis { why, .. }) => Verdict::Wrong(why),
            Err(Error::Changed {
                name,
                pinned,
                got,
                receipt,
                ..
            }) => Verdict::Changed(Error::Changed {
                what: self.mirror.to_owned(),
                name,
                pinned,
                got,
                receipt,
            }),
            Err(error) => return Err(error),
        };
        forget(self.part, false);
        if !resumed {
            return Ok(verdict);
        }
        match self.run(tell) {
            Ok(_) => self.judge(false, tell),
            Err(Trouble::Ours(error)) => Err(error),
            Err(_) => Ok(verdict),
        }
    }

    /// One request and its answer; says whether that went on from what was there.
    fn once(&self, tell: &mut Tell<'_>) -> Result<bool, Trouble> {
        let remembered = Part::read(self.part);
        let mut done = self.offset();
        let here = remembered.url == self.mirror;
        let validator = remembered.validator.filter(|_| here);
        // Bytes of another mirror, or of an unknown version, are worth something only if the whole is checked.
        if done > 0 && validator.is_none() && !self.model.has_hash() {
            forget(self.part, false);
            done = 0;
        }
        say(tell, &Progress::of(Step::Asking(host(self.mirror)))).map_err(Trouble::Ours)?;
        let answer = self.ask(done, validator.as_deref())?;
        let sizes = self.model.sizes();
        let total = match answer.status() {
            StatusCode::OK => {
                done = 0;
                let length = content_length(&answer);
                if let Some(length) = length.filter(|length| !sizes.contains(length)) {
                    return Err(Trouble::NoGood(format!(
                        "it has a file of {length} bytes, and {} is expected",
                        self.model.size_text()
                    )));
                }
                length
            }
            StatusCode::PARTIAL_CONTENT if done > 0 => {
                let range = content_range(&answer).ok_or(Trouble::FromTheStart)?;
                let total = range.total.ok_or(Trouble::FromTheStart)?;
                let same = !here || remembered.total.is_none_or(|before| before == total);
                if range.start != done || !sizes.contains(&total) || !same {
                    return Err(Trouble::FromTheStart);
                }
                Some(total)
            }
            StatusCode::RANGE_NOT_SATISFIABLE if done > 0 => return Err(Trouble::FromTheStart),
            status => return Err(Trouble::NoGood(format!("it answers {status}"))),
        };
        Part {
            url: self.mirror.to_owned(),
            validator: validator_of(&answer),
            total,
        }
        .write(self.part)
        .map_err(|source| Trouble::Ours(self.ours(source, done)))?;
        self.receive(answer, done, total, tell)?;
        Ok(done > 0)
    }

    /// Asks for the file from an offset on, through redirects.
    fn ask(&self, offset: u64, validator: Option<&str>) -> Result<Response<ureq::Body>, Trouble> {
        let no_good = |why: String| Trouble::NoGood(why);
        let mut url = Url::parse(self.mirror).map_err(|e| no_good(e.to_string()))?;
        for _ in 0..MOST_REDIRECTS {
            let mut request = self.agent.get(url.as_str());
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
                if let Some(validator) = validator {
                    request = request.header(header::IF_RANGE, validator);
                }
            }
            let answer = request.call().map_err(|e| match e {
                ureq::Error::Io(_) => Trouble::BrokenOff(plain(&e)),
                e => Trouble::NoGood(plain(&e)),
            })?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let to = answer.headers().get(header::LOCATION);
            let to = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
            url = redirect(&url, to).map_err(no_good)?;
        }
        Err(no_good("it redirects without end".to_owned()))
    }

    /// Writes the body behind what is there.
    fn receive(
        &self,
        answer: Response<ureq::Body>,
        mut done: u64,
        total: Option<u64>,
        tell: &mut Tell<'_>,
    ) -> Result<(), Trouble> {
        let ours = |source, done| Trouble::Ours(self.ours(source, done));
        let mut options = File::options();
        options.create(true).write(true);
        match done {
            0 => options.truncate(true),
            _ => options.append(true),
        };
        let mut file = options.open(self.part).map_err(|e| ours(e, done))?;
        let sizes = self.model.sizes();
        let most = total.unwrap_or(*sizes.end());
        // What the server may send is bounded below, byte by byte.
        let mut body = answer
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader();
        let mut buffer = vec![0; 64 << 10];
        let (mut since, mut mark) = (Instant::now(), done);
        let mut told = None::<Instant>;
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Trouble::BrokenOff(plain(&e.into()))),
            };
            if done + count as u64 > most {
                forget(self.part, false);
                return Err(Trouble::NoGood(
                    "it sends more than the file has".to_owned(),
                ));
            }
            file.write_all(&buffer[..count])
                .map_err(|e| ours(e, done))?;
            done += count as u64;
            if since.elapsed() >= self.patience.span {
                if done - mark < self.patience.bytes {
                    return Err(Trouble::NoGood("it is too slow".to_owned()));
                }
                (since, mark) = (Instant::now(), done);
            }
            if told.is_none_or(|told| told.elapsed() >= Duration::from_millis(100)) {
                told = Some(Instant::now());
                let progress = Progress {
                    step: Step::Downloading(host(self.mirror)),
                    done,
                    total: total.unwrap_or_else(|| self.model.size()),
                };
                say(tell, &progress).map_err(Trouble::Ours)?;
            }
        }
        file.sync_all().map_err(|e| ours(e, done))?;
        match total {
            Some(total) if done < total => {
                Err(Trouble::BrokenOff("the transfer broke off".to_owned()))
            }
            None if done < *sizes.start() => {
                Err(Trouble::BrokenOff("the transfer broke off".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Bytes that are there.
    fn offset(&self) -> u64 {
        fs::metadata(self.part).map_or(0, |file| file.len())
    }

    fn rest(&self, tell: &mut Tell<'_>) -> Result<(), Error> {
        let until = Instant::now() + self.patience.pause;
        while Instant::now() < until {
            say(tell, &Progress::of(Step::Asking(host(self.mirror))))?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn ours(&self, source: io::Error, done: u64) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full {
                path: self.store.folder().to_owned(),
                needed: 1 + self.model.size().saturating_sub(done) / 1_000_000,
            },
            _ => Error::Write {
                path: self.part.to_owned(),
                source,
            },
        }
    }
}

impl Part {
    /// What was written, or nothing: then the transfer starts anew or is checked in the end.
    fn read(part: &Path) -> Self {
        let text = fs::read(Self::path(part)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn write(&self, part: &Path) -> io::Result<()> {
        crate::settings::write_json(&Self::path(part), self)
    }

    fn path(part: &Path) -> PathBuf {
        part.with_extension("part.json")
    }
}

/// Forgets a transfer; its bytes too, unless they have been moved.
fn forget(part: &Path, moved: bool) {
    if !moved {
        let _ = fs::remove_file(part);
    }
    let _ = fs::remove_file(Part::path(part));
}

fn agent(patience: &Patience) -> Agent {
    let silence = Some(patience.silence);
    Agent::config_builder()
        .user_agent(concat!("mimic/", env!("CARGO_PKG_VERSION")))
        // Ranges of an encoded body mean nothing.
        .accept_encoding("identity")
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(silence)
        .timeout_connect(silence)
        .timeout_recv_response(silence)
        .timeout_per_read(silence)
        .build()
        .into()
}

/// Where a redirect leads, if it may be followed.
fn redirect(from: &Url, to: &str) -> Result<Url, String> {
    if to.is_empty() {
        return Err("it redirects without an address".to_owned());
    }
    let to = from
        .join(to)
        .map_err(|e| format!("it redirects to no address ({e})"))?;
    match (from.scheme(), to.scheme()) {
        ("https", "https") | ("http", "http" | "https") => Ok(to),
        ("https", "http") => Err(format!(
            "it redirects from https to http, to {}, which is refused",
            to.host_str().unwrap_or("nowhere")
        )),
        (_, scheme) => Err(format!("it redirects to {scheme}:, which is refused")),
    }
}

/// The host of an address, for people.
fn host(url: &str) -> String {
    let parsed = Url::parse(url).ok();
    let host = parsed.as_ref().and_then(Url::host_str);
    host.unwrap_or(url).to_owned()
}

fn content_length(answer: &Response<ureq::Body>) -> Option<u64> {
    let text = answer
        .headers()
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?;
    text.trim().parse().ok()
}

/// `bytes 100-199/200`, without the end.
#[derive(Debug, PartialEq)]
struct ContentRange {
    start: u64,
    total: Option<u64>,
}

fn content_range(answer: &Response<ureq::Body>) -> Option<ContentRange> {
    parse_range(answer.headers().get(header::CONTENT_RANGE)?.to_str().ok()?)
}

fn parse_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some(ContentRange {
        start: start.trim().parse().ok()?,
        total: total.trim().parse().ok(),
    })
}

/// A strong ETag, else the date of the last change: a weak ETag may not be used for ranges.
fn validator_of(answer: &Response<ureq::Body>) -> Option<String> {
    let text = |name| answer.headers().get(name)?.to_str().ok();
    let tag = text(header::ETAG).filter(|tag| tag.starts_with('"'));
    let validator = tag.or_else(|| text(header::LAST_MODIFIED))?;
    Some(validator.to_owned())
}

/// What the HTTP library says, for people.
fn plain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "it does not answer in time".to_owned(),
        ureq::Error::HostNotFound => "the host is not found".to_owned(),
        ureq::Error::Io(e) => match e.kind() {
            io::ErrorKind::ConnectionRefused => "it refuses the connection".to_owned(),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted => "the transfer broke off".to_owned(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                "it does not answer in time".to_owned()
            }
            _ => e.to_string(),
        },
        other => other.to_string(),
    }
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leads_out_of_https() {
        let go = |from: &str, to: &str| redirect(&Url::parse(from).unwrap(), to);
        for (from, to, where_to) in [
            ("https://a.org/x/y", "https://b.org/z", "https://b.org/z"),
            ("https://a.org/x/y", "/z", "https://a.org/z"),
            ("https://a.org/x/y", "z?q=1", "https://a.org/x/z?q=1"),
            ("https://a.org/x/y", "//b.org/z", "https://b.org/z"),
            ("http://a.org/x", "https://a.org/x", "https://a.org/x"),
            ("http://a.org/x", "http://b.org/x", "http://b.org/x"),
        ] {
            assert_eq!(go(from, to).unwrap().as_str(), where_to);
        }
        for (from, to, word) in [
            ("https://a.org/x", "http://a.org/x", "from https to http"),
            ("https://a.org/x", "HTTP://b.org", "from https to http"),
            ("https://a.org/x", "file:///etc/passwd", "file:"),
            ("http://a.org/x", "ftp://a.org/x", "ftp:"),
            ("http://a.org/x", "data:,x", "data:"),
            ("https://a.org/x", "", "without an address"),
            ("https://a.org/x", "https://", "no address"),
        ] {
            let why = go(from, to).unwrap_err();
            assert!(why.contains(word), "{from} -> {to}: {why}");
        }
    }

    #[test]
    fn ranges_are_read() {
        let range = |text| parse_range(text).map(|range| (range.start, range.total));
        assert_eq!(range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(range("bytes 0-0/*"), Some((0, None)));
        for text in [
            "",
            "bytes */200",
            "items 0-1/2",
            "bytes -1-2/3",
            "bytes 1/2",
        ] {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
