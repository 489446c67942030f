//! The network: one namespace per node, one for clients, and a switch where all faults happen.
//!
//! A cut drops frames on the switch, silently: a node keeps its carrier and address, and its
//! peers see nothing, as with a dead switch port. Without nftables only whole nodes can be cut
//! (their port leaves the bridge); without root there are no namespaces, and nothing can be cut.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::binary;
use crate::latency::Latency;
use crate::process::run_ok;

/// Where something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// On a member's node, by its index from 0.
    Node(usize),
    /// On a machine of its own beside them.
    Client,
}

/// How faults are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Namespaces and nftables on the switch: whole, one-way and partial cuts.
    Filter,
    /// Namespaces without nftables: whole cuts only.
    Port,
    /// Addresses on the loopback interface: no cuts.
    Loopback,
}

impl Means {
    /// Finds what this machine allows. `CHAOS_LOOPBACK=1` asks for the least.
    pub fn detect() -> Self {
        let root = rustix::process::geteuid().is_root();
        let tools = binary::program("ip").is_some() && binary::program("nsenter").is_some();
        if !root || !tools || std::env::var_os("CHAOS_LOOPBACK").is_some() {
            return Self::Loopback;
        }
        if binary::program("nft").is_some() { Self::Filter } else { Self::Port }
    }

    /// Says in one sentence what is missing, `None` when nothing is.
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Self::Filter => None,
            Self::Port => Some("no nft here: only whole nodes can be cut (apt-get install nftables)"),
            Self::Loopback => {
                Some("no root or no iproute2 here: members on 127.x, no network cuts, no node freeze")
            }
        }
    }
}

/// A switch with its nodes.
#[derive(Debug)]
pub struct Network {
    means: Means,
    id: String,
    subnet: u8,
    nodes: usize,
    /// The links that are slow now, with the process that makes them so.
    slow: Mutex<BTreeMap<Place, Latency>>,
}

const TABLE: &str = "table bridge chaos {
 set gone { type ifname; }
 set cut { type ipv4_addr . ipv4_addr; }
 set ports { type ifname . inet_service; }
 chain fw {
  type filter hook forward priority 0; policy accept;
  iifname @gone drop
  oifname @gone drop
  ip saddr . ip daddr @cut drop
  iifname . tcp dport @ports drop
  iifname . tcp sport @ports drop
  oifname . tcp dport @ports drop
  oifname . tcp sport @ports drop
 }
 chain noise { type filter hook forward priority 10; policy accept; }
}
";

fn ip(arguments: &str) -> Result<()> {
    run_ok(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}

impl Network {
    /// Builds the network `id` (which names the namespaces) for `nodes` members.
    pub fn up(id: &str, nodes: usize, means: Means) -> Result<Self> {
        let subnet = u8::try_from(std::process::id() % 250).unwrap_or(0);
        let network = Self { means, id: id.to_owned(), subnet, nodes, slow: Mutex::default() };
        if means != Means::Loopback {
            network.build().with_context(|| format!("build network {id}"))?;
        }
        Ok(network)
    }

    fn build(&self) -> Result<()> {
        let switch = self.namespace_of_switch();
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add br0 type bridge"))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        for place in self.places() {
            let (name, port) = (self.namespace(place), Self::port(place));
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {switch} link add {port} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {switch} link set {port} master br0 up"))?;
            ip(&format!("-n {name} addr add {}/24 dev eth0", self.address(place)))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        if self.means == Means::Filter {
            let file = std::env::temp_dir().join(format!("{}.nft", self.id));
            std::fs::write(&file, TABLE).context("write the nft table")?;
            let loaded = self.nft(&format!("-f {}", file.display()));
            drop(std::fs::remove_file(&file));
            loaded?;
        }
        Ok(())
    }

    fn places(&self) -> Vec<Place> {
        (0..self.nodes).map(Place::Node).chain([Place::Client]).collect()
    }

    fn port(place: Place) -> String {
        match place {
            Place::Node(index) => format!("p{}", index + 1),
            Place::Client => "pc".to_owned(),
        }
    }

    /// The link of a place on the switch while its frames are delayed.
    fn detour(place: Place) -> String {
        format!("{}d", Self::port(place))
    }

    fn file_of_switch(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.namespace_of_switch())
    }

    fn namespace_of_switch(&self) -> String {
        format!("{}-sw", self.id)
    }

    /// The names of all namespaces of this network.
    pub fn namespaces(id: &str, nodes: usize) -> Vec<String> {
        let mut names: Vec<String> = (1..=nodes).map(|number| format!("{id}-n{number}")).collect();
        names.push(format!("{id}-cl"));
        names.push(format!("{id}-sw"));
        names
    }

    fn namespace(&self, place: Place) -> String {
        match place {
            Place::Node(index) => format!("{}-n{}", self.id, index + 1),
            Place::Client => format!("{}-cl", self.id),
        }
    }

    /// Finds out whether every place still has its link: something else on the machine may have taken it away.
    pub fn intact(&self) -> Result<()> {
        if self.means == Means::Loopback {
            return Ok(());
        }
        self.places().into_iter().try_for_each(|place| {
            let (name, address) = (self.namespace(place), self.address(place).to_string());
            let said = run_ok(Command::new("ip").args(["-n", &name, "address", "show", "dev", "eth0"]))?;
            if !said.contains(&address) {
                bail!("{name} has lost its address");
            }
            Ok(())
        })
    }

    /// How faults are made here.
    pub fn means(&self) -> Means {
        self.means
    }

    /// The address of a place.
    pub fn address(&self, place: Place) -> Ipv4Addr {
        let host = match place {
            Place::Node(index) => u8::try_from(index.saturating_add(11)).unwrap_or(u8::MAX),
            Place::Client => 100,
        };
        if self.means == Means::Loopback {
            Ipv4Addr::new(127, 78, self.subnet, host)
        } else {
            Ipv4Addr::new(10, 78, self.subnet, host)
        }
    }

    /// Gives a node another address beside the one it has, as a pod has another one after each start.
    pub fn another_address(&self, index: usize) -> Result<Ipv4Addr> {
        let [a, b, c, d] = self.address(Place::Node(index)).octets();
        let address = Ipv4Addr::new(a, b, c, d.saturating_add(100));
        if self.means != Means::Loopback {
            ip(&format!("-n {} addr add {address}/24 dev eth0", self.namespace(Place::Node(index))))?;
        }
        Ok(address)
    }

    /// The client addresses that Postgres has to let in.
    pub fn client_range(&self) -> &'static str {
        if self.means == Means::Loopback { "127.0.0.0/8" } else { "10.78.0.0/16" }
    }

    /// A command that runs `program` at `place`. It is exec'ed: the pid stays the child's.
    pub fn command(&self, place: Place, program: &std::path::Path) -> Command {
        if self.means == Means::Loopback {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file(place).display())).arg(program);
        command
    }

    fn file(&self, place: Place) -> PathBuf {
        PathBuf::from("/run/netns").join(self.namespace(place))
    }

    /// Runs `work` on a thread of its own at `place`; its sockets belong there.
    pub fn thread<T, F>(&self, place: Place, work: F) -> JoinHandle<Result<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let file = (self.means != Means::Loopback).then(|| self.file(place));
        thread::spawn(move || {
            if let Some(file) = file {
                let namespace = File::open(&file).with_context(|| format!("open {}", file.display()))?;
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&namespace),
                    Some(LinkNameSpaceType::Network),
                )
                .context("enter the namespace")?;
            }
            work()
        })
    }

    fn nft(&self, arguments: &str) -> Result<()> {
        run_ok(
            Command::new("nsenter")
                .arg(format!("--net={}", self.file_of_switch().display()))
                .arg("nft")
                .args(arguments.split_whitespace()),
        )
        .map(drop)
    }

    /// Cuts a node from everything, in both directions, silently.
    pub fn cut(&self, place: Place) -> Result<()> {
        let port = Self::port(place);
        match self.means {
            Means::Filter => {
                let detour = Self::detour(place);
                self.nft(&format!("add element bridge chaos gone {{ \"{port}\", \"{detour}\" }}"))
            }
            Means::Port => ip(&format!("-n {} link set {port} nomaster", self.namespace_of_switch())),
            Means::Loopback => bail!("cannot cut: {}", self.means.missing().unwrap_or_default()),
        }
    }

    /// Drops what `from` sends to `to`, and nothing else.
    pub fn cut_one_way(&self, from: Place, to: Place) -> Result<()> {
        self.filter("cut one way")?;
        let (from, to) = (self.address(from), self.address(to));
        self.nft(&format!("add element bridge chaos cut {{ {from} . {to} }}"))
    }

    /// Cuts two places from each other; both still see the rest.
    pub fn cut_between(&self, one: Place, other: Place) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Drops what belongs to one TCP port, in whichever direction, on a place's link.
    pub fn cut_port(&self, place: Place, port: u16) -> Result<()> {
        self.filter("cut a port")?;
        [Self::port(place), Self::detour(place)].iter().try_for_each(|link| {
            self.nft(&format!("add element bridge chaos ports {{ \"{link}\" . {port} }}"))
        })
    }

    /// Drops so many of a hundred frames, in both directions of a place's link.
    pub fn lose(&self, place: Place, percent: u8) -> Result<()> {
        self.filter("lose frames")?;
        self.noise(place, &format!("numgen random mod 100 < {percent} drop"))
    }

    /// Drops what exceeds so many kilobytes a second, in each direction of a place's link.
    pub fn throttle(&self, place: Place, kilobytes: u32) -> Result<()> {
        self.filter("limit the bandwidth")?;
        self.noise(place, &format!("limit rate over {kilobytes} kbytes/second burst 64 kbytes drop"))
    }

    /// Lets every frame of a place's link arrive later, in each direction, by `delay` give or take `jitter`.
    pub fn delay(&self, place: Place, delay: Duration, jitter: Duration) -> Result<()> {
        self.filter("delay frames")?;
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = slow.remove(&place) {
            self.straighten(place, before)?;
        }
        // The link leaves the switch, and comes back to it through a pair of links between which frames wait.
        let (switch, port, detour) = (self.namespace_of_switch(), Self::port(place), Self::detour(place));
        let inner = format!("{detour}i");
        ip(&format!("-n {switch} link add {detour} type veth peer name {inner}"))?;
        ip(&format!("-n {switch} link set {detour} master br0 up"))?;
        ip(&format!("-n {switch} link set {inner} up"))?;
        ip(&format!("-n {switch} link set {port} nomaster"))?;
        slow.insert(place, Latency::start(&self.file_of_switch(), &port, &inner, delay, jitter)?);
        Ok(())
    }

    fn straighten(&self, place: Place, latency: Latency) -> Result<()> {
        let switch = self.namespace_of_switch();
        latency.stop();
        ip(&format!("-n {switch} link del {}", Self::detour(place)))?;
        ip(&format!("-n {switch} link set {} master br0", Self::port(place)))
    }

    fn noise(&self, place: Place, rule: &str) -> Result<()> {
        for link in [Self::port(place), Self::detour(place)] {
            self.nft(&format!("add rule bridge chaos noise iifname {link} {rule}"))?;
            self.nft(&format!("add rule bridge chaos noise oifname {link} {rule}"))?;
        }
        Ok(())
    }

    fn filter(&self, what: &str) -> Result<()> {
        if self.means == Means::Filter {
            return Ok(());
        }
        bail!("cannot {what}: {}", self.means.missing().unwrap_or_default())
    }

    /// Ends all cuts, all noise and all delays.
    pub fn heal(&self) -> Result<()> {
        let slow = std::mem::take(&mut *self.slow.lock().unwrap_or_else(PoisonError::into_inner));
        slow.into_iter().try_for_each(|(place, latency)| self.straighten(place, latency))?;
        match self.means {
            Means::Filter => {
                self.nft("flush set bridge chaos gone")?;
                self.nft("flush set bridge chaos cut")?;
                self.nft("flush set bridge chaos ports")?;
                self.nft("flush chain bridge chaos noise")
            }
            Means::Port => self.places().into_iter().try_for_each(|place| {
                ip(&format!("-n {} link set {} master br0", self.namespace_of_switch(), Self::port(place)))
            }),
            Means::Loopback => Ok(()),
        }
    }
}
