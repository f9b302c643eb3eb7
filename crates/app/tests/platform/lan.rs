//! A network of hosts that are namespaces of this machine, each way between two of which can be cut.
//!
//! Each is tied to a bridge; whoever is not one of them (this process) reaches all by the bridge's own address. A way is
//! cut where it ends: what comes from the one host is dropped by a routing rule of the other, so that neither is told.

use std::process::{Command, Stdio};

/// Removed with all its parts when dropped.
#[derive(Debug)]
pub(crate) struct Lan {
    /// Begins the names of its parts; an interface's has at most 15 bytes.
    name: String,
    /// The first three bytes of its addresses.
    net: String,
    hosts: usize,
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Lan {
    /// `None`: this user may not make networks, or this machine cannot.
    pub(crate) fn new(hosts: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let process = std::process::id();
        let lan = Self {
            name: format!("mr{process:x}"),
            net: format!("10.{}.{}", 64 + process / 256 % 128, process % 256),
            hosts,
        };
        let Self { name, net, .. } = &lan;
        let made = Command::new("ip").args(["link", "add", name, "type", "bridge"]).output();
        let made = made.expect("ip: `make setup` installs it");
        if !made.status.success() {
            // a container's root is not allowed to either
            println!("no bridge: {}", String::from_utf8_lossy(&made.stderr).trim());
            return None;
        }
        ip(&format!("address add {net}.254/24 dev {name}"));
        ip(&format!("link set {name} up"));
        for host in 0..hosts {
            let own = lan.host(host);
            ip(&format!("netns add {own}"));
            ip(&format!("link add {own} type veth peer name eth0 netns {own}"));
            ip(&format!("link set {own} master {name} up"));
            ip(&format!("-n {own} address add {net}.{}/24 dev eth0", host + 1));
            ip(&format!("-n {own} link set eth0 up"));
            ip(&format!("-n {own} link set lo up"));
            // what is for the host itself is looked up after the rules of cut ways
            ip(&format!("-n {own} rule add pref 100 lookup local"));
            ip(&format!("-n {own} rule del pref 0"));
        }
        Some(lan)
    }

    fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    pub(crate) fn address(&self, host: usize) -> String {
        format!("{}.{}", self.net, host + 1)
    }

    /// A program that runs there.
    pub(crate) fn program(&self, host: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.host(host), program]);
        command
    }

    /// Nothing that `from` sends arrives at `to`.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        ip(&format!("-n {} rule add pref 50 from {} blackhole", self.host(to), self.address(from)));
    }

    /// Every way is open again.
    pub(crate) fn heal(&self) {
        for host in 0..self.hosts {
            let own = self.host(host);
            let removed =
                || Command::new("ip").args(["-n", &own, "rule", "del", "pref", "50"]).stderr(Stdio::null()).status();
            while removed().unwrap().success() {}
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let remove = |arguments: &[&str]| drop(Command::new("ip").args(arguments).stderr(Stdio::null()).status());
        for host in 0..self.hosts {
            remove(&["netns", "del", &self.host(host)]);
            remove(&["link", "del", &self.host(host)]);
        }
        remove(&["link", "del", &self.name]);
    }
}
