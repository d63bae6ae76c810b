//! Another program that has copied a picture: it owns the clipboard of an X server, and answers who asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use x11rb::connection::Connection as _;
use x11rb::protocol::Event;
use x11rb::protocol::xproto::{
    AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, SELECTION_NOTIFY_EVENT,
    SelectionNotifyEvent, SelectionRequestEvent, WindowClass,
};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;
use x11rb::{COPY_DEPTH_FROM_PARENT, COPY_FROM_PARENT, CURRENT_TIME, NONE};

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        CLIPBOARD,
        TARGETS,
        PNG: b"image/png",
    }
}

/// A copied picture, for as long as this lives.
pub(crate) struct Clipboard {
    stop: Arc<AtomicBool>,
    owner: Option<JoinHandle<()>>,
}

impl Clipboard {
    /// Copies a PNG.
    pub(crate) fn with(display: &str, png: Vec<u8>) -> Self {
        let (connection, screen) = RustConnection::connect(Some(display)).unwrap();
        let atoms = Atoms::new(&connection).unwrap().reply().unwrap();
        let root = connection.setup().roots[screen].root;
        let window = connection.generate_id().unwrap();
        let (depth, visual) = (COPY_DEPTH_FROM_PARENT, COPY_FROM_PARENT);
        let class = WindowClass::INPUT_OUTPUT;
        let aux = CreateWindowAux::new();
        connection
            .create_window(depth, window, root, 0, 0, 1, 1, 0, class, visual, &aux)
            .unwrap();
        connection
            .set_selection_owner(window, atoms.CLIPBOARD, CURRENT_TIME)
            .unwrap()
            .check()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let own = move || {
            while !stopped.load(Ordering::Relaxed) {
                match connection.poll_for_event().unwrap() {
                    Some(Event::SelectionRequest(request)) => {
                        answer(&connection, &atoms, &png, &request);
                    }
                    Some(_) => {}
                    None => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        };
        let owner = std::thread::Builder::new().name("clipboard".to_owned());
        Self {
            stop,
            owner: Some(owner.spawn(own).unwrap()),
        }
    }
}

impl Drop for Clipboard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}

/// There is the picture, and the list that says so; whoever wants text is told that there is none.
fn answer(connection: &RustConnection, atoms: &Atoms, png: &[u8], request: &SelectionRequestEvent) {
    let (replace, to, property) = (PropMode::REPLACE, request.requestor, request.property);
    let given = if request.target == atoms.PNG {
        connection.change_property8(replace, to, property, atoms.PNG, png)
    } else if request.target == atoms.TARGETS {
        let list = [atoms.TARGETS, atoms.PNG];
        connection.change_property32(replace, to, property, AtomEnum::ATOM, &list)
    } else {
        connection.no_operation()
    };
    given.unwrap();
    let known = [atoms.PNG, atoms.TARGETS].contains(&request.target);
    let notice = SelectionNotifyEvent {
        response_type: SELECTION_NOTIFY_EVENT,
        sequence: 0,
        time: request.time,
        requestor: to,
        selection: request.selection,
        target: request.target,
        property: if known { property } else { NONE },
    };
    connection
        .send_event(false, to, EventMask::NO_EVENT, notice)
        .unwrap();
    connection.flush().unwrap();
}
