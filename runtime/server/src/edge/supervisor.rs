//! Telling a supervisor, such as systemd, how the server is: datagrams as `sd_notify` sends them.

use std::{
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use crate::config;

/// The first process of a container. With it, everything in the container ends.
const FIRST_PROCESS: u32 = 1;

/// Requests are answered.
pub(super) fn ready() {
    tell("READY=1");
}

/// From now on another process is the server.
pub(super) fn replaced_by(pid: u32) {
    tell(&format!("MAINPID={pid}\nREADY=1"));
}

/// The server ends.
pub(super) fn stopping() {
    tell("STOPPING=1");
}

/// Whether this process can leave its work to another and end.
pub(super) fn allows_replacement(pid: u32) -> bool {
    pid != FIRST_PROCESS
}

fn tell(state: &str) {
    let Some(socket) = config::supervisor() else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, "the supervisor at NOTIFY_SOCKET could not be told");
    }
}

fn send(socket: &OsString, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A supervisor that does not listen must not hold the server up.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(supervisor: &UnixDatagram) -> String {
        let mut words = [0; 64];
        let length = supervisor.recv(&mut words).unwrap();
        String::from_utf8_lossy(&words[..length]).into_owned()
    }

    #[test]
    fn a_supervisor_is_told_by_path_and_by_abstract_name() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        send(&path.into(), "READY=1").unwrap();
        assert_eq!(heard(&supervisor), "READY=1");
        let name = format!("sandpiper-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let supervisor = UnixDatagram::bind_addr(&address).unwrap();
        send(&format!("@{name}").into(), "MAINPID=7\nREADY=1").unwrap();
        assert_eq!(heard(&supervisor), "MAINPID=7\nREADY=1");
        assert!(send(&home.path().join("nobody").into(), "READY=1").is_err());
    }

    #[test]
    fn the_first_process_of_a_container_stays() {
        assert!(allows_replacement(2) && !allows_replacement(1));
    }
}
