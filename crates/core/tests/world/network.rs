//! Connections: FIFO pipes each way, that may break with what is in flight.

use std::collections::VecDeque;

use vmferry_core::PageBitmap;
use vmferry_core::handover::{Claim, Epoch};

use crate::chooser::Chooser;

/// From source to destination.
#[derive(Debug)]
pub(crate) enum ToDestination {
    Offer {
        streams: usize,
    },
    Switch(PageBitmap),
    /// Are you there? Goes out behind the switch.
    Ping,
    State,
    Hashes(Vec<u32>),
    Prepare(Epoch),
    Commit(Epoch),
    AllPushed,
    Abort(String),
    Query(Epoch),
}

/// From destination to source.
#[derive(Debug)]
pub(crate) enum ToSource {
    Accept {
        streams: usize,
    },
    Refuse,
    RoundReceived {
        round: u32,
    },
    Pong,
    Ready(Epoch),
    Running(Epoch),
    /// With the pages it has, unless it declined.
    Owner(Epoch, Claim, Option<PageBitmap>),
    Unknown,
    Complete {
        mismatches: Option<u64>,
    },
    Failed(String),
}

/// On a page stream, or as an answer on the fault stream.
#[derive(Debug)]
pub(crate) enum PageMessage {
    /// Pages and their versions.
    Pages(Vec<(u64, u32)>),
    RoundEnd(u32),
}

/// One direction of a stream.
#[derive(Debug)]
pub(crate) struct Pipe<T> {
    queue: VecDeque<T>,
    cut: bool,
    told: bool,
}

/// A page stream, or the answers to faults.
pub(crate) type PagePipe = Pipe<PageMessage>;

/// What a reader finds.
pub(crate) enum Read<T> {
    Nothing,
    Message(T),
    /// Once.
    End,
}

impl<T> Default for Pipe<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            cut: false,
            told: false,
        }
    }
}

impl<T> Pipe<T> {
    /// Fails on a broken stream, at times; else the message is lost there.
    pub(crate) fn write(&mut self, message: T, chooser: &mut Chooser) -> Result<(), String> {
        if !self.cut {
            self.queue.push_back(message);
            return Ok(());
        }
        match chooser.below(2) {
            0 => Err("broken pipe".into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn read(&mut self) -> Read<T> {
        match self.queue.pop_front() {
            Some(message) => Read::Message(message),
            None if self.cut && !std::mem::replace(&mut self.told, true) => Read::End,
            None => Read::Nothing,
        }
    }

    /// Breaks it; a part of what is in flight still arrives.
    fn cut(&mut self, chooser: &mut Chooser) {
        if !self.cut {
            let arrives = chooser.below(self.queue.len() as u64 + 1) as usize;
            self.queue.truncate(arrives);
            self.cut = true;
        }
    }

    /// The reader is gone.
    fn deaf(&mut self) {
        self.queue.clear();
        self.cut = true;
        self.told = true;
    }

    fn end(&mut self) {
        self.cut = true;
    }
}

/// A control stream with the page streams and the fault stream that belong to it.
#[derive(Default)]
pub(crate) struct Connection {
    pub to_destination: Pipe<ToDestination>,
    pub to_source: Pipe<ToSource>,
    /// The last one carries the answers to faults.
    pub pages: Vec<Pipe<PageMessage>>,
    pub faults: Pipe<u64>,
    /// Page streams and fault stream are open.
    pub open: bool,
}

impl Connection {
    pub(crate) fn cut(&mut self, chooser: &mut Chooser) {
        self.to_destination.cut(chooser);
        self.to_source.cut(chooser);
        self.faults.cut(chooser);
        self.pages.iter_mut().for_each(|pipe| pipe.cut(chooser));
    }

    /// The source closes it: what it sent may still arrive.
    pub(crate) fn close_at_source(&mut self) {
        self.to_source.deaf();
        self.faults.deaf();
        self.to_destination.end();
        self.pages.iter_mut().for_each(Pipe::end);
    }

    /// The destination closes it.
    pub(crate) fn close_at_destination(&mut self) {
        self.to_destination.deaf();
        self.pages.iter_mut().for_each(Pipe::deaf);
        self.to_source.end();
        self.faults.end();
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.to_destination.cut || self.to_source.cut
    }
}

/// All connections there ever were, by number.
#[derive(Default)]
pub(crate) struct Network {
    pub connections: Vec<Connection>,
    /// Nobody reaches the other side any more.
    pub down: bool,
}

impl Network {
    pub(crate) fn connect(&mut self) -> usize {
        self.connections.push(Connection::default());
        self.connections.len() - 1
    }
}
