//! AVF device: register file, mailbox, virtchnl responder, interrupts and queue contexts of one Virtual Function.
