//! The process of the virtualization stack: carries out what [`virtualization_stack::Stack`] decides, on NICs, switches
//! and VMs, all of which are processes of their own and reached by device control.
//!
//! One thread owns the stack and waits for one channel: connections that come up or end, requests that are completed,
//! reports of switches and VMs, and what people ask for over the process's own control socket. It decides nothing itself
//! about VFs, touches no frame, and keeps nothing on disk: desired state is the configuration file and what was changed
//! since, facts are asked of whoever knows them.
//!
//! Follows SPEC-MANAGEMENT §5–§7 for what is set and shown, and the private controls of `adapter`, `virtual_switch` and
//! `vm_worker`. Layer: services (ARCHITECTURE.md).
//!
//! | start reading at | for |
//! | --- | --- |
//! | [`Configuration`] | the file, and what it may say |
//! | [`control`] | what the process is asked and tells |
//! | [`StackProcess`] | the whole |

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod configuration;
mod connector;
pub mod control;
mod event;
mod message;
mod names;
pub mod nic_call;
mod nic_request;
mod process;
mod runtime;
pub mod words;

pub use configuration::{
    AdapterSettings, Configuration, ConfigurationError, NicSettings, SwitchReach, SwitchSettings,
    VmSettings,
};
pub use process::{CONTROL_SOCKET, StackProcess, StartError, control_socket};
