//! An HTTP server on 127.0.0.1 that behaves, and misbehaves, as it is told.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

/// What a client asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `GET /a HTTP/1.1`.
    pub(crate) line: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut same = self.headers.iter().filter(|(n, _)| n == name);
        same.next().map(|(_, value)| value.as_str())
    }

    /// Where the range that is asked for begins.
    pub(crate) fn from(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// Runs until the test's process ends.
pub(crate) struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers every request by `answer`, which is told how many came before it.
    pub(crate) fn start(
        answer: impl Fn(usize, &Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let log = Arc::clone(&seen);
        let answer = Arc::new(answer);
        let serve = move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                let one = move || {
                    let Ok(mut stream) = stream else { return };
                    let Ok(request) = read(&stream) else { return };
                    let number = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    // The client may have gone; that is its business.
                    let _ = answer(number, &request, &mut stream);
                    close(stream);
                };
                Builder::new().name("server-one".into()).spawn(one).unwrap();
            }
        };
        Builder::new().name("server".into()).spawn(serve).unwrap();
        Self { port, seen }
    }

    /// One that gives `file` to everybody, in ranges too.
    pub(crate) fn of(file: Vec<u8>) -> Self {
        Self::start(move |_, request, stream| give(&file, "\"v1\"", request, stream))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

/// Lets the client read all of it: a socket closed over unread bytes throws away what is on its way.
fn close(mut stream: TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
    let _ = io::copy(&mut (&mut stream).take(1 << 16), &mut io::sink());
}

fn read(stream: &TcpStream) -> io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        match line.split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_lowercase(), value.trim().to_owned()));
            }
            None => break,
        }
    }
    Ok(Request { line, headers })
}

/// Answers as a sound server does, with ranges under `If-Range`.
pub(crate) fn give(
    file: &[u8],
    etag: &str,
    request: &Request,
    stream: &mut TcpStream,
) -> io::Result<()> {
    let same = request.header("if-range").is_none_or(|tag| tag == etag);
    match request.from().filter(|_| same) {
        Some(from) if from >= file.len() => head(
            stream,
            "416 Range Not Satisfiable",
            &[("Content-Range", &format!("bytes */{}", file.len()))],
            0,
        ),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
            let headers = [("Content-Range", range.as_str()), ("ETag", etag)];
            head(stream, "206 Partial Content", &headers, file.len() - from)?;
            stream.write_all(&file[from..])
        }
        None => {
            head(stream, "200 OK", &[("ETag", etag)], file.len())?;
            stream.write_all(file)
        }
    }
}

/// Status line, headers, and how much will follow.
pub(crate) fn head(
    stream: &mut TcpStream,
    status: &str,
    headers: &[(&str, &str)],
    length: usize,
) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("Content-Length: {length}\r\n\r\n");
    stream.write_all(text.as_bytes())
}

/// A page that says what a server says when it has no such file.
pub(crate) fn refuse(stream: &mut TcpStream, status: &str) -> io::Result<()> {
    let page = format!("<html>{status}</html>");
    head(stream, status, &[], page.len())?;
    stream.write_all(page.as_bytes())
}
