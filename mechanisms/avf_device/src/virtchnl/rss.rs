//! RSS by messages, and by registers where the RSS_PF capability was not granted (SPEC-AVF §4.8, §5.7).

use avf_protocol::{
    RSS_LUT_SIZE, hash_enable,
    virtchnl::{Capabilities, Reply, Status},
};

use super::DONE;
use crate::{AvfDevice, VfHost};

impl AvfDevice {
    pub(super) fn config_rss_key(&mut self, vsi_id: u16, key: &[u8]) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        self.settings.rss.key = key.try_into().map_err(|_| Status::Parameter)?;
        DONE
    }

    pub(super) fn config_rss_lut(&mut self, vsi_id: u16, lut: &[u8]) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        let lut = lut.try_into().map_err(|_| Status::Parameter)?;
        self.settings.rss.lut = self.existing_queues(lut);
        DONE
    }

    pub(super) fn rss_hena_caps(&self) -> Result<Reply, Status> {
        Ok(Reply::RssHenaCaps(hash_enable::ADAPTIVE))
    }

    pub(super) fn set_rss_hena(&mut self, types: u64) -> Result<Reply, Status> {
        self.settings.rss.hash_enable = types & hash_enable::ADAPTIVE;
        DONE
    }

    /// Entries beyond the VF's queues are folded onto them.
    fn existing_queues(&self, mut lut: [u8; RSS_LUT_SIZE]) -> [u8; RSS_LUT_SIZE] {
        for entry in &mut lut {
            *entry = (u16::from(*entry) % self.vf.queue_pairs).to_le_bytes()[0];
        }
        lut
    }

    /// Whether the registers ask for hashing.
    pub(super) fn rss_registers_hash(&self) -> bool {
        self.registers.hena.iter().any(|bits| *bits != 0)
    }

    /// A driver that was not granted RSS_PF sets RSS by registers.
    pub(crate) fn rss_registers_written(&mut self, host: &mut dyn VfHost) {
        if self.vf.granted.contains(Capabilities::RSS_PF) {
            return;
        }
        let before = self.settings.clone();
        let [low, high] = self.registers.hena;
        let types = u64::from(high) << 32 | u64::from(low);
        let mut lut = [0; RSS_LUT_SIZE];
        fill(&mut lut, &self.registers.hlut);
        let lut = self.existing_queues(lut);
        let rss = &mut self.settings.rss;
        rss.enabled = types != 0;
        rss.hash_enable = types & hash_enable::ADAPTIVE;
        fill(&mut rss.key, &self.registers.hkey);
        rss.lut = lut;
        self.apply_if_changed(&before, host);
    }
}

/// Lays registers out as bytes.
fn fill(bytes: &mut [u8], registers: &[u32]) {
    let all = registers.iter().flat_map(|register| register.to_le_bytes());
    for (byte, value) in bytes.iter_mut().zip(all) {
        *byte = value;
    }
}
