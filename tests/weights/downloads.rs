//! What servers do.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mimic::checkpoint::store::{Error, Step};

use crate::server::{Server, give, head, refuse};
use crate::setup::{Place, about, exactly, noise, quick, until};

const SIZE: usize = 300_000;

/// An error's sentence, of one line.
fn sentence(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 600, "{text}");
    text
}

#[test]
fn a_file_comes_whole_and_leaves_nothing_else() {
    let file = noise(SIZE);
    let server = Server::of(file.clone());
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    let mut last = 0;
    let got = place.download_with(&quick(), &mut |progress| {
        if let Step::Downloading(host) = &progress.step {
            assert_eq!(host, "127.0.0.1");
            assert_eq!(progress.total, SIZE as u64);
            assert!(progress.done >= last);
            last = progress.done;
        }
        ControlFlow::Continue(())
    });
    assert_eq!(got.unwrap(), file);
    assert!(last > 0, "progress was told");
    assert_eq!(place.files(), ["originals/m/model.pth.tar"]);
    // The second time there is nothing to ask for.
    assert_eq!(place.download().unwrap(), file);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_transfer_that_breaks_off_is_resumed_where_it_did() {
    let file = noise(SIZE);
    let serve = file.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => {
            head(stream, "200 OK", &[("ETag", "\"v1\"")], serve.len())?;
            stream.write_all(&serve[..100_000])
        }
        _ => give(&serve, "\"v1\"", request, stream),
    });
    // Whether the hash is known or not.
    for more in [exactly(&file), about(&file)] {
        let before = server.seen().len();
        let place = Place::new(&[server.url("/a")], &more);
        assert_eq!(place.download().unwrap(), file);
        let seen = server.seen();
        if before == 0 {
            assert_eq!(seen.len(), 2);
            assert_eq!(seen[1].from(), Some(100_000));
            assert_eq!(seen[1].header("if-range"), Some("\"v1\""));
            assert_eq!(seen[1].header("accept-encoding"), Some("identity"));
        }
    }
}

#[test]
fn a_download_that_was_stopped_goes_on_the_next_time() {
    let file = noise(SIZE);
    let server = {
        let serve = file.clone();
        Server::start(move |_, request, stream| {
            let from = request.from().unwrap_or(0);
            if from > 0 {
                return give(&serve, "\"v1\"", request, stream);
            }
            head(stream, "200 OK", &[("ETag", "\"v1\"")], serve.len())?;
            for piece in serve.chunks(20_000) {
                stream.write_all(piece)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        })
    };
    let place = Place::new(&[server.url("/a")], &about(&file));
    let stopped = place.download_with(&quick(), &mut until(100_000));
    assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
    assert_eq!(place.files(), ["downloads/m.part", "downloads/m.part.json"]);
    assert_eq!(place.download().unwrap(), file);
    assert!(server.seen()[1].from().unwrap() >= 100_000);
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let file = noise(SIZE);
    let serve = file.clone();
    let server = Server::start(move |number, _, stream| {
        head(stream, "200 OK", &[("ETag", "\"v1\"")], serve.len())?;
        let end = if number == 0 { 100_000 } else { serve.len() };
        stream.write_all(&serve[..end])
    });
    let place = Place::new(&[server.url("/a")], &exactly(&file));
    assert_eq!(place.download().unwrap(), file);
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_file_that_changes_between_two_transfers_is_not_put_together_of_both() {
    let (old, new) = (noise(SIZE), noise(SIZE + 1000));
    let serve = new.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => {
            head(stream, "200 OK", &[("ETag", "\"v1\"")], old.len())?;
            stream.write_all(&old[..100_000])
        }
        _ => give(&serve, "\"v2\"", request, stream),
    });
    let place = Place::new(&[server.url("/a")], &about(&new));
    assert_eq!(place.download().unwrap(), new);
}

#[test]
fn a_range_that_does_not_fit_begins_anew() {
    // One that gives other bytes than were asked for, one that has another length now, one that has no such range.
    for (range, status) in [
        ("bytes 5-299999/300000", "206 Partial Content"),
        ("bytes 100000-310000/310001", "206 Partial Content"),
        ("nonsense", "206 Partial Content"),
        ("bytes */300000", "416 Range Not Satisfiable"),
    ] {
        let file = noise(SIZE);
        let serve = file.clone();
        let server = Server::start(move |number, request, stream| match number {
            0 => {
                head(stream, "200 OK", &[("ETag", "\"v1\"")], serve.len())?;
                stream.write_all(&serve[..100_000])
            }
            1 => {
                head(stream, status, &[("Content-Range", range)], 1000)?;
                stream.write_all(&serve[..1000])
            }
            _ => give(&serve, "\"v1\"", request, stream),
        });
        let place = Place::new(&[server.url("/a")], &exactly(&file));
        assert_eq!(place.download().unwrap(), file, "{range}");
        let seen = server.seen();
        assert_eq!(seen.len(), 3, "{range}");
        assert_eq!(seen[2].from(), None, "{range}");
    }
}

#[test]
fn wrong_bytes_are_left_for_the_next_mirror() {
    let (file, mut wrong) = (noise(SIZE), noise(SIZE));
    wrong[SIZE / 2] ^= 1;
    let (bad, good) = (Server::of(wrong.clone()), Server::of(file.clone()));
    let place = Place::new(&[bad.url("/a"), good.url("/a")], &exactly(&file));
    assert_eq!(place.download().unwrap(), file);
    // Nothing of the wrong file was kept.
    assert_eq!(good.seen()[0].from(), None);

    let alone = Place::new(&[bad.url("/a")], &exactly(&file));
    let said = sentence(&alone.download().unwrap_err());
    assert!(
        said.contains("127.0.0.1") && said.contains("sha256"),
        "{said}"
    );
    assert_eq!(alone.files(), [""; 0], "wrong bytes were kept");
}

#[test]
fn bytes_of_two_mirrors_that_do_not_go_together_are_fetched_again_from_one() {
    let (file, other) = (noise(SIZE), vec![7; SIZE]);
    let first = Server::start(move |_, _, stream| {
        head(stream, "200 OK", &[], other.len())?;
        stream.write_all(&other[..100_000])
    });
    let second = Server::of(file.clone());
    let place = Place::new(&[first.url("/a"), second.url("/a")], &exactly(&file));
    assert_eq!(place.download().unwrap(), file);
    let starts: Vec<_> = second.seen().iter().map(|r| r.from()).collect();
    assert_eq!(starts, [Some(100_000), None]);
}

#[test]
fn a_wrong_length_is_refused_before_a_byte_is_kept() {
    let file = noise(SIZE);
    for length in [10, SIZE - 1, SIZE + 1, 1 << 40] {
        let serve = file.clone();
        let bad = Server::start(move |_, _, stream| {
            head(stream, "200 OK", &[], length)?;
            stream.write_all(&serve)
        });
        let good = Server::of(file.clone());
        let place = Place::new(&[bad.url("/a"), good.url("/a")], &exactly(&file));
        assert_eq!(place.download().unwrap(), file, "{length}");
        assert_eq!(bad.seen().len(), 1, "{length}");
    }
}

#[test]
fn a_body_without_a_length_ends_at_the_models_size() {
    let file = noise(SIZE);
    let endless = Server::start(move |_, _, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            stream.write_all(b"10000\r\n")?;
            stream.write_all(&[1; 0x10000])?;
            stream.write_all(b"\r\n")?;
        }
    });
    let place = Place::new(&[endless.url("/a")], &exactly(&file));
    let said = sentence(&place.download().unwrap_err());
    assert!(said.contains("more than the file has"), "{said}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn an_unknown_address_and_an_error_of_the_server_lead_to_the_next_mirror() {
    let file = noise(SIZE);
    let missing = Server::start(|_, _, stream| refuse(stream, "404 Not Found"));
    let broken = Server::start(|_, _, stream| refuse(stream, "500 Internal Server Error"));
    let talk = Server::start(|_, _, stream| stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"));
    let good = Server::of(file.clone());
    let mirrors = [&missing, &broken, &talk, &good].map(|server| server.url("/a"));
    let place = Place::new(&mirrors, &exactly(&file));
    assert_eq!(place.download().unwrap(), file);

    let place = Place::new(&mirrors[..2], &exactly(&file));
    let said = sentence(&place.download().unwrap_err());
    assert!(said.contains("404") && said.contains("500"), "{said}");
}

#[test]
fn redirects_are_followed_and_loops_are_not() {
    let file = noise(SIZE);
    let there = Server::of(file.clone());
    let to = there.url("/there");
    let server = Server::start(move |_, request, stream| {
        let to = match request.line.split(' ').nth(1) {
            Some("/far") => to.as_str(),
            Some("/near") => "far",
            Some("/out") => "ftp://127.0.0.1/a",
            Some("/nowhere") => return refuse(stream, "302 Found"),
            _ => "/loop",
        };
        head(stream, "302 Found", &[("Location", to)], 0)
    });
    let from = |path: &str| Place::new(&[server.url(path)], &exactly(&file));
    assert_eq!(from("/near").download().unwrap(), file);
    assert!(there.seen()[0].line.starts_with("GET /there "));
    for (path, word) in [
        ("/loop", "without end"),
        ("/out", "ftp:"),
        ("/nowhere", "without an address"),
    ] {
        let said = sentence(&from(path).download().unwrap_err());
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn a_server_that_trickles_or_stalls_is_left_for_the_next() {
    let file = noise(SIZE);
    let trickle = Server::start(|_, _, stream| {
        head(stream, "200 OK", &[], SIZE)?;
        loop {
            stream.write_all(&[1])?;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let silent = Server::start(|_, _, _| {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let stalls = Server::start(|_, _, stream| {
        head(stream, "200 OK", &[], SIZE)?;
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let good = Server::of(file.clone());
    for (bad, word) in [
        (&trickle, "too slow"),
        (&silent, "in time"),
        (&stalls, "in time"),
    ] {
        let began = Instant::now();
        let place = Place::new(&[bad.url("/a"), good.url("/a")], &exactly(&file));
        assert_eq!(place.download().unwrap(), file);
        assert!(began.elapsed() < Duration::from_secs(10), "{word}");
        let alone = Place::new(&[bad.url("/a")], &exactly(&file));
        let said = sentence(&alone.download().unwrap_err());
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn nobody_there_is_one_sentence_with_every_mirror() {
    let file = noise(10);
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mirrors = [
        format!("http://127.0.0.1:{port}/a"),
        "http://nowhere.invalid/a".to_owned(),
    ];
    let place = Place::new(&mirrors, &exactly(&file));
    let said = sentence(&place.download().unwrap_err());
    assert!(
        said.contains("127.0.0.1: it refuses") && said.contains("nowhere.invalid: "),
        "{said}"
    );
}

#[test]
fn a_file_without_a_published_hash_is_pinned_and_another_is_refused() {
    let (first, mut second) = (noise(SIZE), noise(SIZE));
    second[7] ^= 1;
    let changed = std::sync::Arc::new(AtomicBool::new(false));
    let (old, new, now) = (first.clone(), second.clone(), changed.clone());
    let server = Server::start(
        move |_, request, stream| match now.load(Ordering::Relaxed) {
            false => give(&old, "\"v1\"", request, stream),
            true => give(&new, "\"v2\"", request, stream),
        },
    );
    let place = Place::new(&[server.url("/a")], &about(&first));
    let store = place.store();
    let model = store.model("m").unwrap();
    assert_eq!(place.download().unwrap(), first);
    let receipt = mimic::checkpoint::store::Receipt {
        sha256: crate::setup::sha256(&first),
        bytes: SIZE as u64,
        lean_sha256: None,
    };
    store.remember(model, &receipt).unwrap();
    std::fs::remove_file(store.original(model)).unwrap();

    changed.store(true, Ordering::Relaxed);
    let said = sentence(&place.download().unwrap_err());
    let pin = store.receipt_path(model);
    assert!(said.contains(pin.to_str().unwrap()), "{said}");
    assert!(
        said.contains(&receipt.sha256) && said.contains(&server.url("/a")),
        "{said}"
    );
    assert!(!store.original(model).exists());

    // Who trusts it removes the pin.
    std::fs::remove_file(&pin).unwrap();
    assert_eq!(place.download().unwrap(), second);
    // A pin that cannot be read is not passed over.
    std::fs::write(&pin, "{").unwrap();
    let said = sentence(&place.download().unwrap_err());
    assert!(said.contains(pin.to_str().unwrap()), "{said}");
}
