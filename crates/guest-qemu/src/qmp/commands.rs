//! The commands we use. Only the members we read are named; QEMU may send more.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A command: its members are the arguments.
pub trait Command: Serialize {
    /// Name on the wire.
    const NAME: &'static str;
    /// What QEMU returns.
    type Reply: DeserializeOwned;
}

/// The reply of commands that return nothing.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

macro_rules! command {
    ($(#[$doc:meta])* $type:ident = $name:literal -> $reply:ty { $($(#[$member_doc:meta])* $member:ident: $member_type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $type { $($(#[$member_doc])* pub $member: $member_type),* }

        impl Command for $type {
            const NAME: &'static str = $name;
            type Reply = $reply;
        }
    };
}

pub(super) use command;

command! {
    /// What the guest is doing.
    QueryStatus = "query-status" -> Status {}
}
command! {
    /// Stops the vCPUs, drains I/O and flushes disks.
    Stop = "stop" -> Nothing {}
}
command! {
    /// Lets the vCPUs run.
    Cont = "cont" -> Nothing {}
}
command! {
    /// Ends QEMU.
    Quit = "quit" -> Nothing {}
}
command! {
    /// Starts sending the guest's state; the end is told by events.
    Migrate = "migrate" -> Nothing {
        /// Where to, for example `fd:name`.
        uri: String,
    }
}
command! {
    /// Starts receiving in a QEMU started with `-incoming defer`.
    MigrateIncoming = "migrate-incoming" -> Nothing {
        /// Where from.
        uri: String,
    }
}
command! {
    /// Ends a migration that runs; none running is no error.
    MigrateCancel = "migrate_cancel" -> Nothing {}
}
command! {
    /// Goes on from a state in which migration pauses.
    MigrateContinue = "migrate-continue" -> Nothing {
        /// That state.
        state: String,
    }
}
command! {
    /// Switches migration capabilities.
    MigrateSetCapabilities = "migrate-set-capabilities" -> Nothing {
        /// The ones to switch; others stay.
        capabilities: Vec<Capability>,
    }
}
command! {
    /// Sets migration parameters.
    MigrateSetParameters = "migrate-set-parameters" -> Nothing {
        /// Bytes a second.
        max_bandwidth: u64,
        /// Milliseconds.
        downtime_limit: u64,
    }
}
command! {
    /// How the migration goes.
    QueryMigrate = "query-migrate" -> MigrationInfo {}
}
command! {
    /// The block nodes.
    QueryNamedBlockNodes = "query-named-block-nodes" -> Vec<BlockNode> {}
}
command! {
    /// The drives of the guest.
    QueryBlock = "query-block" -> Vec<BlockDevice> {}
}
command! {
    /// The memory backends.
    QueryMemdev = "query-memdev" -> Vec<Memdev> {}
}
command! {
    /// The plugged memory devices.
    QueryMemoryDevices = "query-memory-devices" -> Vec<MemoryDevice> {}
}
command! {
    /// QEMU's version.
    QueryVersion = "query-version" -> Version {}
}
command! {
    /// Everything QEMU's monitor knows.
    QueryQmpSchema = "query-qmp-schema" -> Vec<SchemaEntry> {}
}
command! {
    /// What the build offers the guest as accelerators is not in QMP of old versions; whether KVM is on is.
    QueryKvm = "query-kvm" -> Kvm {}
}
command! {
    /// Sends the packets that tell switches where the guest is.
    AnnounceSelf = "announce-self" -> Nothing {
        /// Milliseconds before the first packet after the one at once.
        initial: u32,
        /// The longest pause between packets, milliseconds.
        max: u32,
        /// How many.
        rounds: u32,
        /// By how much the pause grows, milliseconds.
        step: u32,
    }
}
command! {
    /// Takes the descriptor that comes along under a name, in place of an earlier one of that name.
    GetFd = "getfd" -> Nothing {
        /// The name.
        fdname: String,
    }
}
command! {
    /// Closes a descriptor taken with `getfd` and not used since.
    CloseFd = "closefd" -> Nothing {
        /// Its name.
        fdname: String,
    }
}
command! {
    /// A command of the human monitor.
    HumanMonitorCommand = "human-monitor-command" -> String {
        /// The command with its arguments.
        command_line: String,
    }
}
command! {
    /// The properties of an object.
    QomList = "qom-list" -> Vec<QomProperty> {
        /// Path of the object.
        path: String,
    }
}
command! {
    /// A property's value.
    QomGet = "qom-get" -> Value {
        /// Path of the object.
        path: String,
        /// Name of the property.
        property: String,
    }
}

command! {
    /// Changes a property.
    QomSet = "qom-set" -> Nothing {
        /// Path of the object.
        path: String,
        /// Name of the property.
        property: String,
        /// Its new value.
        value: Value,
    }
}
command! {
    /// The virtio devices; since 7.2, and not promised to stay.
    XQueryVirtio = "x-query-virtio" -> Vec<VirtioDevice> {}
}
command! {
    /// One queue of a virtio device; since 7.2, and not promised to stay.
    XQueryVirtioQueueStatus = "x-query-virtio-queue-status" -> VirtioQueue {
        /// Path of the device.
        path: String,
        /// Number of the queue.
        queue: u16,
    }
}

/// A virtio device.
#[derive(Clone, Debug, Deserialize)]
pub struct VirtioDevice {
    /// Its path.
    pub path: String,
}

/// Reply of [`XQueryVirtioQueueStatus`]: where the guest's driver has put the parts of the queue, 0 where it has not.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtioQueue {
    /// Entries.
    pub vring_num: u32,
    /// Guest-physical address of the descriptors.
    pub vring_desc: u64,
    /// Of what the driver offers.
    pub vring_avail: u64,
    /// Of what the device has used.
    pub vring_used: u64,
}

/// Reply of [`QueryStatus`].
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// QEMU's run state, for example `running`, `paused`, `inmigrate`.
    pub status: String,
}

/// A migration capability and whether it is on.
#[derive(Clone, Debug, Serialize)]
pub struct Capability {
    /// Its name.
    pub capability: &'static str,
    /// On or off.
    pub state: bool,
}

/// Reply of [`QueryMigrate`].
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// How far it is; absent before the first migration.
    pub status: Option<String>,
    /// Figures about RAM that goes through QEMU's own stream.
    pub ram: Option<MigrationRam>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why it cannot be started now (newer versions).
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
}

/// RAM in QEMU's own stream.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct MigrationRam {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes of all RAM blocks that are not skipped.
    pub total: u64,
}

/// A node of the block layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// File or URL.
    pub file: String,
    /// Name of the driver, for example `raw`, `qcow2`, `file`.
    pub drv: String,
    /// Name of the node.
    pub node_name: Option<String>,
    /// Whether writing is impossible.
    pub ro: bool,
    /// How it caches.
    pub cache: BlockCache,
}

/// Cache settings of a block node.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct BlockCache {
    /// Whether the host's page cache is passed by (O_DIRECT).
    pub direct: bool,
}

/// A drive as the guest sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct BlockDevice {
    /// Name of the drive.
    pub device: String,
    /// The medium.
    pub inserted: Option<BlockNode>,
}

/// A memory backend.
#[derive(Clone, Debug, Deserialize)]
pub struct Memdev {
    /// Id of the object.
    pub id: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Whether it is mapped shared (absent in old versions).
    pub share: Option<bool>,
}

/// A plugged memory device: its kind, and what is known of it.
#[derive(Clone, Debug, Deserialize)]
pub struct MemoryDevice {
    /// `dimm`, `nvdimm`, `virtio-mem`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Members that depend on the kind.
    pub data: Value,
}

/// QEMU's version.
#[derive(Clone, Debug, Deserialize)]
pub struct Version {
    /// The numbers.
    pub qemu: VersionNumbers,
    /// What the distribution adds.
    #[serde(default)]
    pub package: String,
}

/// The numbers of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct VersionNumbers {
    /// First.
    pub major: u32,
    /// Second.
    pub minor: u32,
    /// Third.
    pub micro: u32,
}

/// Reply of [`QueryKvm`].
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Kvm {
    /// Built in and permitted.
    pub present: bool,
    /// In use.
    pub enabled: bool,
}

/// A property of an object.
#[derive(Clone, Debug, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type; `child<T>` is an object of type T below this one.
    #[serde(rename = "type")]
    pub kind: String,
}

/// One entry of the schema. Which members are there depends on its meta type.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SchemaEntry {
    /// Name of the command or event, or number of the type.
    pub name: String,
    /// `command`, `object`, `enum`, `array`, ...
    pub meta_type: String,
    /// Type of a command's arguments.
    pub arg_type: Option<String>,
    /// Type of an array's elements.
    pub element_type: Option<String>,
    /// Members of an object, or of an enum in newer versions.
    pub members: Option<Vec<SchemaMember>>,
    /// Values of an enum.
    #[serde(default)]
    pub values: Vec<String>,
}

/// A member of an object, enum or alternate.
#[derive(Clone, Debug, Deserialize)]
pub struct SchemaMember {
    /// Its name; empty in alternates, whose members have none.
    #[serde(default)]
    pub name: String,
    /// Its type, in objects.
    #[serde(rename = "type")]
    pub kind: Option<String>,
}

impl SchemaMember {
    pub(super) fn named(&self, name: &str) -> Option<&str> {
        self.kind.as_deref().filter(|_| self.name == name)
    }
}

impl SchemaEntry {
    pub(super) fn has_value(&self, value: &str) -> bool {
        self.values.iter().any(|known| known == value)
            || self.members.iter().flatten().any(|member| member.name == value)
    }
}
