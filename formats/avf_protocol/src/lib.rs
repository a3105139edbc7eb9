//! Intel Adaptive Virtual Function: registers, admin queue, virtchnl messages and descriptors, as types.
