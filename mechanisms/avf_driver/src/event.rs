//! What happens to a device by itself, as [`crate::AvfControl::poll_events`] reports it.

use avf_protocol::virtchnl::LinkStatus;

/// Something that happened to the device.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The link changed.
    LinkChange(LinkStatus),
    /// The PF announced a reset. Queue pairs stand still: hand them to
    /// [`crate::AvfControl::rebuild`].
    ResetImpending,
    /// The function was found reset without an announcement. As [`Event::ResetImpending`].
    ResetDetected,
    /// The PF's driver is going away; the function answers no more messages (SPEC-AVF §4.6, event
    /// 3).
    PfDriverClosed,
    /// The server closed the connection or died. Nothing more comes; open the device anew.
    DeviceGone,
}
