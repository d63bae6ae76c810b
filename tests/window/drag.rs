//! What a file manager and a window manager do on X11: drag and drop (XDND, version 5), and closing.
//!
//! <https://freedesktop.org/wiki/Specifications/XDND/>

use std::path::Path;
use std::time::{Duration, Instant};

use x11rb::connection::Connection as _;
use x11rb::protocol::Event;
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ClientMessageEvent, ConnectionExt as _, CreateWindowAux, EventMask, PropMode,
    SELECTION_NOTIFY_EVENT, SelectionNotifyEvent, SelectionRequestEvent, Window, WindowClass,
};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;
use x11rb::{COPY_DEPTH_FROM_PARENT, COPY_FROM_PARENT, CURRENT_TIME};

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        XdndAware,
        XdndSelection,
        XdndEnter,
        XdndPosition,
        XdndStatus,
        XdndDrop,
        XdndFinished,
        XdndActionCopy,
        WM_PROTOCOLS,
        WM_DELETE_WINDOW,
        TextUriList: b"text/uri-list",
    }
}

/// The version spoken.
const VERSION: u32 = 5;
/// How long the window may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Files that are being dragged over the only window of a screen.
pub(crate) struct Drag {
    connection: RustConnection,
    atoms: Atoms,
    source: Window,
    target: Window,
    uris: String,
}

impl Drag {
    /// Takes files up, and brings them over the window at this place of the screen. It has been told what
    /// they are, and says that it takes them.
    pub(crate) fn over(display: &str, files: &[&Path], at: (u16, u16)) -> Self {
        let (connection, screen) = RustConnection::connect(Some(display)).unwrap();
        let atoms = Atoms::new(&connection).unwrap().reply().unwrap();
        let root = connection.setup().roots[screen].root;
        let source = connection.generate_id().unwrap();
        let aux = CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        let (depth, visual) = (COPY_DEPTH_FROM_PARENT, COPY_FROM_PARENT);
        let class = WindowClass::INPUT_OUTPUT;
        connection
            .create_window(depth, source, root, 0, 0, 1, 1, 0, class, visual, &aux)
            .unwrap();
        connection
            .set_selection_owner(source, atoms.XdndSelection, CURRENT_TIME)
            .unwrap();
        let target = window(&connection, &atoms, root);
        let uris = files
            .iter()
            .map(|file| format!("file://{}\r\n", file.display()));
        let mut drag = Self {
            atoms,
            source,
            target,
            uris: uris.collect(),
            connection,
        };
        let kinds = [drag.atoms.TextUriList, 0, 0];
        drag.tell(
            drag.atoms.XdndEnter,
            [VERSION << 24, kinds[0], kinds[1], kinds[2]],
        );
        let place = (u32::from(at.0) << 16) | u32::from(at.1);
        let action = drag.atoms.XdndActionCopy;
        drag.tell(drag.atoms.XdndPosition, [0, place, CURRENT_TIME, action]);
        let (mut asked, mut taken) = (false, false);
        drag.until("takes the files", |drag, event| {
            match event {
                Event::SelectionRequest(request) => {
                    drag.hand_over(&request);
                    asked = true;
                }
                Event::ClientMessage(message) if message.type_ == drag.atoms.XdndStatus => {
                    taken = message.data.as_data32()[1] & 1 == 1;
                }
                _ => {}
            }
            asked && taken
        });
        drag
    }

    /// Lets go of them, and waits until the window has them.
    pub(crate) fn drop(mut self) {
        self.tell(self.atoms.XdndDrop, [0, CURRENT_TIME, 0, 0]);
        self.until("says that it has the files", |drag, event| {
            matches!(event, Event::ClientMessage(message)
                if message.type_ == drag.atoms.XdndFinished && message.data.as_data32()[1] & 1 == 1)
        });
    }

    fn tell(&self, what: Atom, [a, b, c, d]: [u32; 4]) {
        let message = ClientMessageEvent::new(32, self.target, what, [self.source, a, b, c, d]);
        self.connection
            .send_event(false, self.target, EventMask::NO_EVENT, message)
            .unwrap();
        self.connection.flush().unwrap();
    }

    fn hand_over(&self, request: &SelectionRequestEvent) {
        self.connection
            .change_property8(
                PropMode::REPLACE,
                request.requestor,
                request.property,
                self.atoms.TextUriList,
                self.uris.as_bytes(),
            )
            .unwrap();
        let notice = SelectionNotifyEvent {
            response_type: SELECTION_NOTIFY_EVENT,
            sequence: 0,
            time: request.time,
            requestor: request.requestor,
            selection: request.selection,
            target: request.target,
            property: request.property,
        };
        self.connection
            .send_event(false, request.requestor, EventMask::NO_EVENT, notice)
            .unwrap();
        self.connection.flush().unwrap();
    }

    fn until(&mut self, what: &str, mut enough: impl FnMut(&Self, Event) -> bool) {
        let began = Instant::now();
        loop {
            match self.connection.poll_for_event().unwrap() {
                Some(event) if enough(self, event.clone()) => return,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(5)),
            }
            assert!(began.elapsed() < PATIENCE, "the window never {what}");
        }
    }
}

/// Asks the only window of a screen to close.
pub(crate) fn close(display: &str) {
    let (connection, screen) = RustConnection::connect(Some(display)).unwrap();
    let atoms = Atoms::new(&connection).unwrap().reply().unwrap();
    let window = window(&connection, &atoms, connection.setup().roots[screen].root);
    let data = [atoms.WM_DELETE_WINDOW, CURRENT_TIME, 0, 0, 0];
    let message = ClientMessageEvent::new(32, window, atoms.WM_PROTOCOLS, data);
    connection
        .send_event(false, window, EventMask::NO_EVENT, message)
        .unwrap()
        // Waits for the server: it may not read what somebody who has left had sent.
        .check()
        .unwrap();
}

/// The window that takes drops.
fn window(connection: &RustConnection, atoms: &Atoms, root: Window) -> Window {
    let tree = connection.query_tree(root).unwrap().reply().unwrap();
    let aware = |&window: &Window| {
        let property = connection
            .get_property(false, window, atoms.XdndAware, AtomEnum::ATOM, 0, 1)
            .unwrap();
        property
            .reply()
            .is_ok_and(|property| property.value_len == 1)
    };
    tree.children.into_iter().find(aware).expect("the window")
}
