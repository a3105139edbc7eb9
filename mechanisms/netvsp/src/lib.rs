//! NetVSP and NetVSC: the synthetic network adapter's two ends, over VMBus.
