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

use std::net::Ipv4Addr;

use crate::error::Result;
use crate::namespace::Namespace;

/// Name of the guest's tap device at both hosts.
pub(crate) const TAP: &str = "guest0";
/// Bits of the network's prefix.
pub(crate) const PREFIX_BITS: u8 = 24;
/// Address of the guest, wherever it runs.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
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
    /// The two hosts' namespaces.
    pub hosts: [HostEnd; 2],
    /// The switch's and the client's namespace.
    pub client: Namespace,
    /// How the links are shaped, in words.
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
}

impl Topology {
    /// Makes everything (with `taps` also one a host for a guest's network card), with links of `rate` (as `tc` reads it: `1gbit`) in both directions, or of no limit.
    ///
    /// # Errors
    /// When `ip` or `tc` fails; then nothing is left.
    pub fn create(run: &str, rate: Option<&str>, taps: bool) -> Result<Self> {
        let client = Namespace::create("net", run)?;
        add_bridge(&client, CLIENT)?;
        let network = format!(
            "{}/{PREFIX_BITS}",
            Ipv4Addr::from(u32::from(CLIENT) & u32::MAX << (32 - PREFIX_BITS))
        );
        client.ip(&format!(
            "route replace {network} dev br0 src {CLIENT} rto_min {CLIENT_MIN_RETRANSMIT}"
        ))?;
        let hosts = [
            add_host(&client, "a", run, HOSTS[0], taps)?,
            add_host(&client, "b", run, HOSTS[1], taps)?,
        ];
        let mut topology = Self {
            hosts,
            client,
            link: "not shaped".into(),
        };
        if let Some(rate) = rate {
            topology.link = topology.shape(rate)?;
        }
        Ok(topology)
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
fn add_host(switch: &Namespace, role: &str, run: &str, address: Ipv4Addr, taps: bool) -> Result<HostEnd> {
    let namespace = Namespace::create(role, run)?;
    add_bridge(&namespace, address)?;
    let port = format!("port-{role}");
    let name = namespace.name();
    switch.ip(&format!(
        "link add {port} type veth peer name {UPLINK} netns {name}"
    ))?;
    let mut ports = vec![(switch, port.as_str()), (&namespace, UPLINK)];
    if taps {
        namespace.ip(&format!("tuntap add dev {TAP} mode tap"))?;
        ports.push((&namespace, TAP));
    }
    for (place, device) in ports {
        place.ip(&format!("link set {device} master br0 up"))?;
    }
    for device in ["br0", UPLINK] {
        namespace.ip(&format!("link set {device} gso_max_size {MAX_SEGMENT_BYTES}"))?;
    }
    Ok(HostEnd { namespace, address })
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
        let topology = Topology::create(&run, Some("100mbit"), false).unwrap();
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

    #[test]
    fn a_rate_that_is_none_is_refused_and_nothing_is_left() {
        if crate::requirements::skips_namespaces() {
            return;
        }
        let run = format!("{}-rate", std::process::id());
        let error = format!(
            "{:#}",
            Topology::create(&run, Some("quick"), false).err().unwrap()
        );
        assert!(error.contains("quick") && error.contains("uplink"), "{error}");
        assert!(!ip("netns list").unwrap().contains(&run));
    }
}
