//! Links break, peers die, operators change their minds: the guest always ends with one owner and its data whole.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::proxy::Link;
use common::{Pair, assert_healthy, busy, eventually};
use vmferry_core::report::Outcome;
use vmferry_core::source::Side;
use vmferry_core::{Limits, Strategy};
use vmferry_guest::{Guest as _, GuestState};
use vmferry_runtime::{Outgoing, Request};
use vmferry_transport::Endpoint;

fn over(link: &Link, pair: &Pair, strategy: Strategy) -> Request {
    Request {
        to: link.endpoint().clone(),
        ..pair.request(strategy)
    }
}

#[test]
fn a_cut_in_post_copy_is_survived() {
    let pair = Pair::new();
    let link = Link::to(&pair.endpoint);
    link.limit(20 << 20);
    let (vm, dir) = pair.launch("vm", &busy());
    let outgoing = Outgoing::start(vm, dir, over(&link, &pair, Strategy::PostCopyPush)).unwrap();
    eventually("the guest arrived", || {
        !pair.destination.arrived.lock().unwrap().is_empty()
    });
    eventually("some pages crossed", || link.forwarded() > 4 << 20);
    for _ in 0..2 {
        link.cut();
        eventually("the source noticed", || outgoing.progress().phase == "reconnect");
        assert!(outgoing.cancel().is_err(), "the guest is the destination's");
        std::thread::sleep(Duration::from_millis(200));
        assert!(outgoing.report().is_none(), "it waits");
        let before = link.forwarded();
        link.mend();
        eventually("pages cross again", || {
            link.forwarded() > before + (2 << 20) || outgoing.report().is_some()
        });
    }
    link.limit(0);
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.unwrap().mismatches, 0);
    assert!(
        report.notes.iter().any(|note| note.contains("connection lost")),
        "{:?}",
        report.notes
    );
    assert_healthy(&pair.destination, "vm");
}

#[test]
fn a_cut_before_the_commit_leaves_the_guest_at_the_source() {
    for strategy in [Strategy::PreCopy, Strategy::StopAndCopy] {
        let pair = Pair::new();
        let link = Link::to(&pair.endpoint);
        link.limit(20 << 20);
        let (vm, dir) = pair.launch("vm", &busy());
        let outgoing = Outgoing::start(vm.clone(), dir.clone(), over(&link, &pair, strategy)).unwrap();
        eventually("some pages crossed", || link.forwarded() > 2 << 20);
        link.cut();
        let report = outgoing.wait();
        assert_eq!(report.outcome, Outcome::Failed);
        assert_healthy(&pair.source, "vm");
        eventually("the destination let go", || {
            pair.destination.discarded.lock().unwrap().len() == 1
        });
        // It can be tried again.
        let report = pair.migrate(vm, dir, pair.request(strategy));
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        assert_healthy(&pair.destination, "vm");
    }
}

#[test]
fn cancel_leaves_the_guest_at_the_source() {
    let pair = Pair::new();
    let link = Link::to(&pair.endpoint);
    link.limit(10 << 20);
    let (vm, dir) = pair.launch("vm", &busy());
    let outgoing = Outgoing::start(vm.clone(), dir, over(&link, &pair, Strategy::PreCopy)).unwrap();
    eventually("some pages crossed", || link.forwarded() > 1 << 20);
    outgoing.cancel().unwrap();
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Cancelled);
    assert_eq!(vm.state(), GuestState::Running);
    assert_healthy(&pair.source, "vm");
    eventually("the destination let go", || {
        pair.destination.discarded.lock().unwrap().len() == 1
    });
    assert!(outgoing.cancel().is_err(), "it is over");
}

#[test]
fn the_destination_can_give_an_incoming_guest_up() {
    let pair = Pair::new();
    let link = Link::to(&pair.endpoint);
    link.limit(10 << 20);
    let (vm, dir) = pair.launch("vm", &busy());
    let outgoing = Outgoing::start(vm, dir, over(&link, &pair, Strategy::PreCopy)).unwrap();
    eventually("some pages crossed", || link.forwarded() > 1 << 20);
    pair.incoming.cancel("vm").unwrap();
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.error.unwrap().contains("given up by the operator"));
    assert_healthy(&pair.source, "vm");
    assert!(
        pair.incoming.cancel("vm").is_err(),
        "there is nothing to give up any more"
    );
}

#[test]
fn an_operator_can_take_a_guest_back_from_a_dead_destination() {
    let pair = Pair::new();
    let link = Link::to(&pair.endpoint);
    link.limit(10 << 20);
    let (vm, dir) = pair.launch("vm", &busy());
    let outgoing = Outgoing::start(vm, dir, over(&link, &pair, Strategy::PostCopyPush)).unwrap();
    eventually("the guest arrived", || {
        !pair.destination.arrived.lock().unwrap().is_empty()
    });
    link.cut();
    eventually("the source noticed", || outgoing.progress().phase == "reconnect");
    // As if the host had died: nothing of it runs any more.
    pair.destination.guest("vm").destroy();
    assert!(
        outgoing.resolve(Side::Destination).is_err(),
        "the destination lacks pages"
    );
    outgoing.resolve(Side::Source).unwrap();
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.error.unwrap().contains("taken back by the operator"));
    assert_healthy(&pair.source, "vm");
}

#[test]
fn an_unreachable_destination_is_one_clear_line() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port())
    };
    let request = Request {
        to: nobody,
        ..pair.request(Strategy::PreCopy)
    };
    let report = pair.migrate(vm, dir, request);
    assert_eq!(report.outcome, Outcome::Failed);
    let error = report.error.unwrap();
    assert!(
        error.contains("refused") && error.contains("127.0.0.1") && !error.contains('\n'),
        "{error}"
    );
    assert_healthy(&pair.source, "vm");
}

#[test]
fn more_streams_than_possible_are_refused_at_once() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let refused = Outgoing::start(
        vm,
        dir,
        Request {
            streams: Some(65),
            ..pair.request(Strategy::PreCopy)
        },
    );
    assert!(refused.err().unwrap().to_string().contains("1 to 64"));
    assert_healthy(&pair.source, "vm");
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let pair = Pair::new();
    let Endpoint::Tcp { host, port } = pair.endpoint.clone() else {
        panic!("TCP")
    };
    let connect = || TcpStream::connect((host.as_str(), port)).unwrap();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[0xff; 64],
        b"VMFERRY\0",
        b"VMFERRY\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        let mut stream = connect();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 2048, "a refusal at most");
    }
    let (vm, dir) = pair.launch("vm", &busy());
    let limits = Limits {
        downtime: Duration::from_millis(100),
        ..Limits::default()
    };
    let report = pair.migrate(
        vm,
        dir,
        Request {
            limits,
            ..pair.request(Strategy::PreCopy)
        },
    );
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
}
