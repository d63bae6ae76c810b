//! Ranks meet over TCP and stay connected: so each notices within half a minute when another is gone, also
//! while it waits for that one inside a library which would wait for ever.
//!
//! Rank 0 is connected with every other. Who fails says why, who ends says so; who is silent for too long, or
//! hangs up without a word, is lost, and rank 0 tells the rest.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Error;

/// How long all are waited for at the start.
const MEETING: Duration = Duration::from_secs(300);

/// How often each says that it is there.
const BEAT: Duration = Duration::from_secs(4);

/// Who says nothing for so long is lost.
const SILENCE: Duration = Duration::from_secs(20);

/// What a connection begins with, before rank and size (u32, little endian).
const HELLO: &[u8] = b"mimic ranks 1\n";

/// Longest text in a message, and longest word of welcome.
const LONGEST: usize = 1000;

const ALIVE: u8 = 0;
const ENDED: u8 = 1;
/// Before the length (u16, little endian) and the words.
const FAILED: u8 = 2;

/// What happens when a rank is lost: it is told which, in one sentence.
pub type Lost = Arc<dyn Fn(&str) + Send + Sync>;

/// The connections of one rank.
pub(super) struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    rank: usize,
    peers: Vec<Peer>,
    /// Set when this rank, or the run, is over: nobody is missed any more.
    over: AtomicBool,
    lost: Lost,
}

struct Peer {
    rank: usize,
    address: Option<IpAddr>,
    stream: Mutex<TcpStream>,
}

impl Watch {
    /// Rank 0: waits for all others and welcomes each with `welcome`.
    ///
    /// # Errors
    /// When they do not all come.
    pub(super) fn host(
        listener: &TcpListener,
        size: usize,
        welcome: &[u8],
        lost: Lost,
    ) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::Ranks(format!("rank 0 cannot be met: {e}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let deadline = Instant::now() + MEETING;
        let mut found: Vec<Option<TcpStream>> = (1..size).map(|_| None).collect();
        while let Some(missing) = found.iter().position(Option::is_none) {
            match listener.accept() {
                Ok((stream, from)) => match hello(stream, size) {
                    Ok((rank, stream)) if found[rank - 1].is_none() => {
                        found[rank - 1] = Some(stream);
                    }
                    Ok((rank, _)) => {
                        return Err(Error::Ranks(format!(
                            "two processes say that they are rank {rank}"
                        )));
                    }
                    Err(e) => tracing::warn!("{from} is none of these processes: {e}"),
                },
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                Err(_) => {
                    let here = found.iter().flatten().count() + 1;
                    return Err(Error::Ranks(format!(
                        "{here} of {size} processes came within {} minutes, rank {} did not",
                        MEETING.as_secs() / 60,
                        missing + 1
                    )));
                }
            }
        }
        let peers = found.into_iter().flatten().zip(1..);
        let peers: Vec<Peer> = peers
            .map(|(stream, rank)| Peer::new(rank, stream))
            .collect();
        for peer in &peers {
            peer.say(&message(ALIVE, welcome)).map_err(failed)?;
        }
        Self::start(0, peers, lost)
    }

    /// Every other: finds rank 0; gives also what it was welcomed with.
    ///
    /// # Errors
    /// When rank 0 is not found, or does not begin.
    pub(super) fn join(
        (host, port): (&str, u16),
        rank: usize,
        size: usize,
        lost: Lost,
    ) -> Result<(Self, Vec<u8>), Error> {
        let deadline = Instant::now() + MEETING;
        let failed =
            |e: io::Error| Error::Ranks(format!("rank 0 cannot be met at {host}:{port}: {e}"));
        let mut stream = loop {
            match TcpStream::connect((host, port)) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
                Err(e) => return Err(failed(e)),
            }
        };
        let mut text = HELLO.to_vec();
        for number in [rank, size] {
            text.extend((number as u32).to_le_bytes());
        }
        stream.write_all(&text).map_err(failed)?;
        // Rank 0 waits for all before it answers.
        stream
            .set_read_timeout(Some(MEETING + SILENCE))
            .map_err(failed)?;
        stream.read_exact(&mut [0]).map_err(failed)?;
        let welcome = words(&mut stream).map_err(failed)?;
        let watch = Self::start(rank, vec![Peer::new(0, stream)], lost)?;
        Ok((watch, welcome))
    }

    fn start(rank: usize, peers: Vec<Peer>, lost: Lost) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            rank,
            peers,
            over: AtomicBool::new(false),
            lost,
        });
        let spawn = |name: String, work: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name).spawn(work);
            thread
                .map(drop)
                .map_err(|e| Error::Ranks(format!("cannot start a thread: {e}")))
        };
        for (i, peer) in shared.peers.iter().enumerate() {
            let failed = |e: io::Error| Error::Ranks(format!("rank {}: {e}", peer.rank));
            let stream = peer.lock().try_clone().map_err(failed)?;
            stream.set_read_timeout(Some(SILENCE)).map_err(failed)?;
            stream.set_write_timeout(Some(SILENCE)).map_err(failed)?;
            let shared = Arc::clone(&shared);
            let name = format!("watch-{}", peer.rank);
            spawn(name, Box::new(move || shared.listen(i, stream)))?;
        }
        let beating = Arc::clone(&shared);
        spawn("watch-beat".to_owned(), Box::new(move || beating.beat()))?;
        Ok(Self { shared })
    }

    /// This rank ends: well, or because of something.
    pub(super) fn leave(&self, failure: Option<&str>) {
        self.shared.over.store(true, Ordering::SeqCst);
        let text = match failure {
            Some(why) => message(
                FAILED,
                self.shared.sentence(self.shared.rank, why).as_bytes(),
            ),
            None => vec![ENDED],
        };
        for peer in &self.shared.peers {
            // Who is gone already need not be told.
            let _ = peer.say(&text);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Without a word before it, this is a loss for the others.
        self.shared.over.store(true, Ordering::SeqCst);
        for peer in &self.shared.peers {
            let _ = peer.lock().shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn beat(&self) {
        let mut next = Instant::now() + BEAT;
        while !self.over.load(Ordering::SeqCst) {
            if Instant::now() >= next {
                next += BEAT;
                for peer in &self.peers {
                    // The listener notices who is gone.
                    let _ = peer.say(&message(ALIVE, &[]));
                }
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn listen(&self, which: usize, mut stream: TcpStream) {
        let peer = &self.peers[which];
        let sentence = loop {
            match hear(&mut stream) {
                Ok((ALIVE, _)) => {}
                Ok((FAILED, text)) => break String::from_utf8_lossy(&text).into_owned(),
                Ok(_) => return,
                Err(e) if silent(&e) => {
                    let why = format!("said nothing for {} seconds", SILENCE.as_secs());
                    break self.sentence(peer.rank, &why);
                }
                Err(_) => break self.sentence(peer.rank, "ended without a word"),
            }
        };
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        for (i, other) in self.peers.iter().enumerate() {
            if i != which {
                let _ = other.say(&message(FAILED, sentence.as_bytes()));
            }
        }
        (self.lost)(&sentence);
    }

    fn sentence(&self, rank: usize, what: &str) -> String {
        let peer = self.peers.iter().find(|peer| peer.rank == rank);
        match peer.and_then(|peer| peer.address) {
            Some(address) => format!("rank {rank} (on {address}) {what}"),
            None => format!("rank {rank} {what}"),
        }
    }
}

impl Peer {
    fn new(rank: usize, stream: TcpStream) -> Self {
        Self {
            rank,
            address: stream.peer_addr().ok().map(|it| it.ip().to_canonical()),
            stream: Mutex::new(stream),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TcpStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &[u8]) -> io::Result<()> {
        self.lock().write_all(message)
    }
}

/// Kind, length, words.
fn message(kind: u8, words: &[u8]) -> Vec<u8> {
    if kind == ENDED {
        return vec![kind];
    }
    let words = &words[..words.len().min(LONGEST)];
    let length = (words.len() as u16).to_le_bytes();
    [&[kind], length.as_slice(), words].concat()
}

fn hear(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        ENDED => Ok((ENDED, Vec::new())),
        ALIVE | FAILED => Ok((kind[0], words(stream)?)),
        other => Err(io::Error::other(format!("an unknown message {other}"))),
    }
}

fn words(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut words = vec![0; usize::from(u16::from_le_bytes(length)).min(LONGEST)];
    stream.read_exact(&mut words)?;
    Ok(words)
}

/// Whether nothing came in time.
fn silent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Who has come.
fn hello(mut stream: TcpStream, size: usize) -> io::Result<(usize, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut said = vec![0; HELLO.len() + 8];
    stream.read_exact(&mut said)?;
    let (hello, numbers) = said.split_at(HELLO.len());
    let number = |i: usize| {
        let bytes: [u8; 4] = std::array::from_fn(|at| numbers[4 * i + at]);
        u32::from_le_bytes(bytes) as usize
    };
    let (rank, theirs) = (number(0), number(1));
    if hello != HELLO || theirs != size || rank == 0 || rank >= size {
        return Err(io::Error::other("it says something else"));
    }
    Ok((rank, stream))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    /// Three ranks that have met, and what each is told of losses.
    fn three() -> Vec<(Watch, Receiver<String>)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ends = || {
            let (to, from) = sync_channel(9);
            let lost: Lost = Arc::new(move |what: &str| to.send(what.to_owned()).unwrap());
            (lost, from)
        };
        let mut others = Vec::new();
        for rank in 1..3 {
            let (lost, from) = ends();
            let join = move || Watch::join(("127.0.0.1", port), rank, 3, lost).unwrap();
            let thread = thread::Builder::new().name(format!("rank-{rank}"));
            others.push((thread.spawn(join).unwrap(), from));
        }
        // Somebody who has nothing to do with it.
        let mut stranger = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            .unwrap();
        let (lost, from) = ends();
        let mut all = vec![(Watch::host(&listener, 3, b"secret", lost).unwrap(), from)];
        for (thread, from) in others {
            let (watch, welcome) = thread.join().unwrap();
            assert_eq!(welcome, b"secret");
            all.push((watch, from));
        }
        all
    }

    fn told(from: &Receiver<String>) -> String {
        from.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn a_rank_that_ends_without_a_word_is_named_to_all_others() {
        let mut ranks = three();
        drop(ranks.pop());
        for (_, from) in &ranks {
            assert_eq!(told(from), "rank 2 (on 127.0.0.1) ended without a word");
        }
        let mut ranks = three();
        drop(ranks.remove(0));
        for (_, from) in &ranks {
            assert!(told(from).contains("rank 0"));
        }
    }

    #[test]
    fn a_rank_that_fails_says_why() {
        let ranks = three();
        ranks[1].0.leave(Some("failed: no disk"));
        for i in [0, 2] {
            assert_eq!(told(&ranks[i].1), "rank 1 failed: no disk");
        }
        assert!(ranks[1].1.try_recv().is_err());
    }

    #[test]
    fn who_ends_well_is_not_missed() {
        let mut ranks = three();
        let (watch, from) = ranks.pop().unwrap();
        watch.leave(None);
        drop(watch);
        thread::sleep(Duration::from_millis(200));
        for (_, from) in ranks.iter() {
            assert!(from.try_recv().is_err());
        }
        for (watch, _) in &ranks {
            watch.leave(None);
        }
        let told: Vec<_> = ranks
            .drain(..)
            .map(|(_, from)| from)
            .chain([from])
            .collect();
        thread::sleep(Duration::from_millis(200));
        assert!(told.iter().all(|from| from.try_recv().is_err()));
    }
}
