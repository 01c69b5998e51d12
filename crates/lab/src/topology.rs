//! Two hosts and a client at a switch, each in a network namespace.
//!
//! ```text
//!   vmferry-a-RUN                vmferry-net-RUN               vmferry-b-RUN
//!   guest0 (tap)                  client 10.77.0.254                guest0 (tap)
//!      |                                 |                             |
//!   br0 10.77.0.1 -- uplink === port-a  br0  port-b === uplink -- br0 10.77.0.2
//! ```
//!
//! The tap has the same name at both hosts, because QEMU's command line moves with the guest. The bridges neither wait
//! before they forward nor speak a spanning tree, so that they follow the guest's address as soon as it speaks
//! from its new place.
//!
//! `===` is a pair of virtual Ethernet devices, or, where the link has a delay, two taps and a relay. Half of
//! the delay is on either host's link, so that a client is half way between the hosts.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::link::Link;
use crate::namespace::{self, Namespace};
use crate::relay::{LinkDelay, Relay};

/// Bits of the network's prefix.
pub(crate) const PREFIX_BITS: u8 = 24;
/// Where a guest is connected, and by which address it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its address, wherever it runs.
    pub address: Ipv4Addr,
    /// Name of its tap device at every host.
    pub(crate) tap: &'static str,
    /// Of its network card.
    pub(crate) mac: &'static str,
}

impl Seat {
    /// Of the guest that is moved.
    pub const MOVED: Self = Self {
        address: Ipv4Addr::new(10, 77, 0, 10),
        tap: "guest0",
        mac: "52:54:00:0a:4d:0a",
    };
    /// Of a guest beside it, which stays.
    pub const NEIGHBOUR: Self = Self {
        address: Ipv4Addr::new(10, 77, 0, 11),
        tap: "guest1",
        mac: "52:54:00:0a:4d:0b",
    };
}

impl Default for Seat {
    fn default() -> Self {
        Self::MOVED
    }
}
/// The device with which a host is connected.
const UPLINK: &str = "uplink";
const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// What sends for the first time again within this time, where nothing was answered. The default of 200 ms is
/// for the Internet: a single packet lost at the switch-over would hide every downtime below it.
const CLIENT_MIN_RETRANSMIT: &str = "5ms";

/// The most that leaves a host's socket in one piece. A card sends its 1500 bytes and looks again what is urgent; here a piece
/// is what the shaper sees, and 64 KiB would take half a millisecond at 1 Gbit/s.
const MAX_SEGMENT_BYTES: u32 = 16 << 10;

/// Queues that can follow a shaper, the best one first. `fq_codel` lets flows of little traffic (faults) pass those
/// that fill the link (the push); `pfifo_fast` is in every kernel and does so by the packets' type of service.
const LEAVES: [&str; 2] = ["fq_codel", "pfifo_fast"];

/// The network of a lab. It goes when it is dropped, with all processes in it.
pub struct Topology {
    /// What makes the links take their time; none where they take none.
    relays: Vec<Relay>,
    /// The two hosts' namespaces.
    pub hosts: [HostEnd; 2],
    /// The switch's and the client's namespace.
    pub client: Namespace,
    /// How the links really are, in words.
    pub link: String,
}

/// A host's end.
pub struct HostEnd {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

impl HostEnd {
    /// Bytes that this host put on its link so far.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn sent_bytes(&self) -> Result<u64> {
        self.namespace.sent_bytes(UPLINK)
    }

    /// Makes the tap of a guest.
    ///
    /// # Errors
    /// When `ip` fails.
    pub(crate) fn add_tap(&self, seat: Seat) -> Result<()> {
        let tap = seat.tap;
        self.namespace.ip(&format!("tuntap add dev {tap} mode tap"))?;
        self.namespace.ip(&format!("link set {tap} master br0 up"))
    }
}

impl Topology {
    /// Makes everything (with `taps` also one a host for a guest's network card), with links of this rate in both
    /// directions and this delay.
    ///
    /// # Errors
    /// When `ip` or `tc` fails; then nothing is left.
    pub fn create(run: &str, link: &Link, taps: bool) -> Result<Self> {
        let client = Namespace::create("net", run)?;
        add_bridge(&client, CLIENT)?;
        let network = format!(
            "{}/{PREFIX_BITS}",
            Ipv4Addr::from(u32::from(CLIENT) & u32::MAX << (32 - PREFIX_BITS))
        );
        client.ip(&format!(
            "route replace {network} dev br0 src {CLIENT} rto_min {CLIENT_MIN_RETRANSMIT}"
        ))?;
        let mut relays = Vec::new();
        let mut host = |role: &str, address| {
            let delay = link.delay() / 2;
            let (host, relay) = add_host(&client, role, run, address, delay, taps)?;
            relays.extend(relay);
            Ok(host)
        };
        let hosts = [host("a", HOSTS[0])?, host("b", HOSTS[1])?];
        let mut topology = Self {
            relays,
            hosts,
            client,
            link: "not shaped".into(),
        };
        if let Some(rate) = link.rate() {
            topology.link = topology.shape(rate)?;
        }
        if !link.delay().is_zero() {
            let ms = link.delay().as_secs_f64() * 1e3;
            topology.link += &format!(", {ms} ms from host to host by a relay");
        }
        Ok(topology)
    }

    /// How the links kept their delay so far; none where they have none.
    ///
    /// # Errors
    /// When they carry nothing any more.
    pub fn delay(&self) -> Result<Option<LinkDelay>> {
        LinkDelay::of(&self.relays)
    }

    /// Gives each host one processor: whatever is started there from now on has to share it.
    ///
    /// # Errors
    /// When there are not two.
    pub fn one_core_each(&self) -> Result<()> {
        let cores = namespace::cores()?;
        if cores.len() < self.hosts.len() {
            return Err(LabError::Missing(
                "no second processor: each host needs one of its own where guests contend".into(),
            ));
        }
        for (host, core) in self.hosts.iter().zip(cores) {
            host.namespace.keep_on(core);
        }
        Ok(())
    }

    /// Shapes both ends of both links. Returns what it did.
    fn shape(&self, rate: &str) -> Result<String> {
        let [a, b] = &self.hosts;
        let ends = [
            (&a.namespace, UPLINK),
            (&b.namespace, UPLINK),
            (&self.client, "port-a"),
            (&self.client, "port-b"),
        ];
        let mut done = String::new();
        for (namespace, device) in ends {
            done = shape_device(namespace, device, rate)?;
        }
        Ok(done)
    }
}

/// Makes a host and connects it with the switch.
fn add_host(
    switch: &Namespace,
    role: &str,
    run: &str,
    address: Ipv4Addr,
    delay: Duration,
    taps: bool,
) -> Result<(HostEnd, Option<Relay>)> {
    let namespace = Namespace::create(role, run)?;
    add_bridge(&namespace, address)?;
    let port = format!("port-{role}");
    let relay = if delay.is_zero() {
        let name = namespace.name();
        let pair = format!("link add {port} type veth peer name {UPLINK} netns {name}");
        switch.ip(&pair)?;
        None
    } else {
        Some(Relay::start([(switch, &port), (&namespace, UPLINK)], delay)?)
    };
    let ports = [(switch, port.as_str()), (&namespace, UPLINK)];
    for (place, device) in ports {
        place.ip(&format!("link set {device} master br0 up"))?;
    }
    for device in ["br0", UPLINK] {
        namespace.ip(&format!("link set {device} gso_max_size {MAX_SEGMENT_BYTES}"))?;
    }
    let host = HostEnd { namespace, address };
    if taps {
        host.add_tap(Seat::MOVED)?;
    }
    Ok((host, relay))
}

fn add_bridge(namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
    namespace.ip("link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0")?;
    namespace.ip(&format!("address add {address}/{PREFIX_BITS} dev br0"))?;
    namespace.ip("link set br0 up")
}

/// Limits what leaves a device: by HTB with the best queue there is, else by TBF.
fn shape_device(namespace: &Namespace, device: &str, rate: &str) -> Result<String> {
    match shape_by_htb(namespace, device, rate) {
        Ok(leaf) => Ok(format!("{rate} by htb and {leaf}")),
        Err(htb) => {
            // What HTB's attempt left behind is in TBF's way; there may be nothing.
            let _ = namespace.tc(&format!("qdisc del dev {device} root"));
            let tbf = format!("qdisc add dev {device} root tbf rate {rate} burst 128k latency 2ms");
            namespace.tc(&tbf).map_err(|_| htb)?;
            Ok(format!("{rate} by tbf"))
        }
    }
}

/// Returns the queue behind the shaper.
fn shape_by_htb(namespace: &Namespace, device: &str, rate: &str) -> Result<&'static str> {
    namespace.tc(&format!("qdisc add dev {device} root handle 1: htb default 1"))?;
    namespace.tc(&format!(
        "class add dev {device} parent 1: classid 1:1 htb rate {rate} burst 128k cburst 128k quantum 60000"
    ))?;
    let add = |leaf: &str| namespace.tc(&format!("qdisc add dev {device} parent 1:1 handle 10: {leaf}"));
    let known = LEAVES.into_iter().find(|leaf| add(leaf).is_ok());
    Ok(known.unwrap_or("a plain queue"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::namespace::ip;

    #[test]
    fn hosts_and_client_reach_each_other_over_shaped_links_and_nothing_is_left() {
        if crate::requirements::skips_namespaces() {
            return;
        }
        let run = format!("{}-topo", std::process::id());
        let topology = Topology::create(&run, &"100mbit".parse().unwrap(), false).unwrap();
        let [a, b] = &topology.hosts;
        let listener = b
            .namespace
            .enter(|| TcpListener::bind((b.address, 4000)).unwrap())
            .unwrap();
        let from_a = a
            .namespace
            .enter(|| TcpStream::connect((b.address, 4000)).unwrap())
            .unwrap();
        let from_client = topology
            .client
            .enter(|| TcpStream::connect((b.address, 4000)).unwrap())
            .unwrap();
        let addresses = [&from_a, &from_client].map(|stream| stream.local_addr().unwrap().ip());
        assert_eq!(addresses, [HOSTS[0], CLIENT].map(std::net::IpAddr::from));

        // 4 MiB take 0.33 s at 100 Mbit/s, and much less where nothing is shaped.
        let (mut received, _) = listener.accept().unwrap();
        let start = Instant::now();
        let sender = std::thread::spawn(move || (&from_a).write_all(&vec![1; 4 << 20]));
        received.read_exact(&mut vec![0; 4 << 20]).unwrap();
        assert!(
            start.elapsed().as_millis() > 250,
            "{:?} by {}",
            start.elapsed(),
            topology.link
        );
        sender.join().unwrap().unwrap();
        let sent = a.sent_bytes().unwrap();
        assert!((4 << 20..8 << 20).contains(&sent), "{sent}");

        drop(topology);
        let left = ip("netns list").unwrap();
        assert!(!left.contains(&run), "{left}");
    }

    /// A link whose rate is nearly kept, by the best of a few attempts: the machine may be busy.
    #[test]
    fn a_delay_is_kept_from_host_to_host_and_the_rate_is_carried() {
        if crate::requirements::skips_namespaces() {
            return;
        }
        let run = format!("{}-delay", std::process::id());
        let link = "100mbit+10ms".parse().unwrap();
        let topology = Topology::create(&run, &link, false).unwrap();
        let [a, b] = &topology.hosts;
        let listener = b
            .namespace
            .enter(|| TcpListener::bind((b.address, 4000)).unwrap())
            .unwrap();
        let connect = |from: &Namespace| {
            let dialled = from
                .enter(|| TcpStream::connect((b.address, 4000)).unwrap())
                .unwrap();
            dialled.set_nodelay(true).unwrap();
            (dialled, listener.accept().unwrap().0)
        };
        let (mut near, mut far) = connect(&a.namespace);
        let round_trip = |near: &mut TcpStream, far: &mut TcpStream| {
            let began = Instant::now();
            near.write_all(b"!").unwrap();
            far.read_exact(&mut [0]).unwrap();
            far.write_all(b"!").unwrap();
            near.read_exact(&mut [0]).unwrap();
            began.elapsed()
        };
        for _ in 0..5 {
            let took = round_trip(&mut near, &mut far);
            assert!(took >= 2 * link.delay(), "{took:?} by {}", topology.link);
        }
        // The client is half way.
        let (mut client, mut server) = connect(&topology.client);
        let took = round_trip(&mut client, &mut server);
        assert!(took >= link.delay(), "{took:?} by {}", topology.link);

        let mib = 4;
        let rates = (0..4).map(|_| {
            let began = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| near.write_all(&vec![1; mib << 20]).unwrap());
                far.read_exact(&mut vec![0; mib << 20]).unwrap();
            });
            (mib << 23) as f64 / began.elapsed().as_secs_f64() / 1e6
        });
        let best = rates.fold(0.0, f64::max);
        assert!(
            (60.0..110.0).contains(&best),
            "{best} Mbit/s by {}",
            topology.link
        );
        let kept = topology.delay().unwrap().unwrap();
        println!("{best:.1} Mbit/s by {}, {kept:?}", topology.link);
        assert!(
            (kept.wanted_ms, kept.lost) == (10.0, 0) && kept.frames > 100,
            "{kept:?}"
        );

        drop(topology);
        let left = ip("netns list").unwrap();
        assert!(!left.contains(&run), "{left}");
    }
}
