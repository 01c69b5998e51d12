//! What a QEMU knows, by its own account (`query-qmp-schema`).

use std::collections::HashMap;

use super::commands::SchemaEntry;

/// The commands, events and types of one QEMU.
pub struct Schema {
    entries: HashMap<String, SchemaEntry>,
}

impl Schema {
    /// Made of an answer to `query-qmp-schema`.
    pub fn new(entries: Vec<SchemaEntry>) -> Self {
        Self {
            entries: entries
                .into_iter()
                .map(|entry| (entry.name.clone(), entry))
                .collect(),
        }
    }

    /// Whether the command exists.
    pub fn supports_command(&self, name: &str) -> bool {
        self.entries
            .get(name)
            .is_some_and(|entry| entry.meta_type == "command")
    }

    /// Whether the migration capability exists.
    pub fn supports_capability(&self, name: &str) -> bool {
        // migrate-set-capabilities { capabilities: [ { capability: <enum>, state: bool } ] }
        self.argument_type("migrate-set-capabilities", "capabilities")
            .and_then(|list| list.element_type.as_deref())
            .and_then(|element| self.member_type(element, "capability"))
            .is_some_and(|names| names.has_value(name))
    }

    /// Whether the command takes an argument of that name.
    pub fn supports_argument(&self, command: &str, argument: &str) -> bool {
        self.argument_type(command, argument).is_some()
    }

    /// Whether the command takes an argument of that name whose type has that value.
    pub fn supports_value(&self, command: &str, argument: &str, value: &str) -> bool {
        self.argument_type(command, argument)
            .is_some_and(|names| names.has_value(value))
    }

    fn argument_type(&self, command: &str, argument: &str) -> Option<&SchemaEntry> {
        let arguments = self.entries.get(command)?.arg_type.as_deref()?;
        self.member_type(arguments, argument)
    }

    fn member_type(&self, object: &str, member: &str) -> Option<&SchemaEntry> {
        let member = self
            .entries
            .get(object)?
            .members
            .as_ref()?
            .iter()
            .find_map(|entry| entry.named(member));
        self.entries.get(member?)
    }
}
