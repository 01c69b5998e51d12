//! Many migrations: resampled traces, varied paths.

use rand::{RngExt as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmferry_core::MigrationRequest;

use crate::Simulator;
use crate::error::SimError;
use crate::outcome::Outcome;
use crate::path::{MOST_READS, PathModel};
use crate::world::World;

impl Simulator {
    /// Simulates `runs` migrations: each of a guest that does what blocks of the recording show, drawn anew with
    /// replacement (the bootstrap of Efron, in blocks because neighbouring samples are alike), over a path that is varied
    /// as [`PathModel::variation`] says. The same seed gives the same outcomes.
    ///
    /// # Errors
    /// As [`Simulator::run`].
    pub fn many<To>(
        &self,
        request: &MigrationRequest<To>,
        path: &PathModel,
        seed: u64,
        runs: usize,
    ) -> Result<Vec<Outcome>, SimError> {
        path.check()?;
        self.check(request)?;
        (0..runs as u64)
            .map(|run| {
                let seed = crate::units::mix(seed ^ run << 32);
                let varied = path.varied(seed);
                World::new(self.recorded.resampled(seed), request, &varied, seed).run()
            })
            .collect()
    }
}

impl PathModel {
    /// This path on another day.
    pub fn varied(&self, seed: u64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x9a7b);
        // Sums of twelve uniform numbers are near enough to normal, and never far out.
        let mut factor = |deviation: f64| {
            let normal = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
            (normal * deviation).exp()
        };
        let link = factor(self.variation.link);
        let cpu = factor(self.variation.cpu);
        let devices = factor(self.variation.devices);
        let reads = factor(self.variation.reads);
        let mut varied = self.clone();
        varied.link_bytes_per_s = (varied.link_bytes_per_s * link).max(1.0);
        varied.reads_per_write = (varied.reads_per_write * reads).min(MOST_READS);
        for figure in [
            &mut varied.codecs.copy,
            &mut varied.codecs.lz4,
            &mut varied.codecs.zstd,
            &mut varied.codecs.zstd_5,
            &mut varied.codecs.delta,
            &mut varied.codecs.decode_lz4,
            &mut varied.codecs.decode_zstd,
            &mut varied.write_ns_per_byte,
            &mut varied.receive_ns_per_page,
            &mut varied.install_ns_per_page,
            &mut varied.scan_ns_per_page,
            &mut varied.scan_ns_per_dirty_page,
            &mut varied.fault_ms,
        ] {
            *figure *= cpu;
        }
        for figure in [
            &mut varied.prepare_ms,
            &mut varied.flush_ms,
            &mut varied.stop_ms,
            &mut varied.save_ms,
            &mut varied.load_ms,
            &mut varied.resume_ms,
            &mut varied.journal_ms,
        ] {
            *figure *= devices;
        }
        varied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_varies_around_itself_and_the_same_way_for_the_same_seed() {
        let path = PathModel::typical(125e6, 0.2);
        assert_eq!(path.varied(7), path.varied(7));
        let rates: Vec<f64> = (0..400).map(|seed| path.varied(seed).link_bytes_per_s).collect();
        let mean = rates.iter().sum::<f64>() / 400.0;
        assert!((mean / 125e6 - 1.0).abs() < 0.01, "{mean}");
        let far = rates.iter().filter(|rate| (*rate / 125e6 - 1.0).abs() > 0.06);
        assert!(
            (4..40).contains(&far.count()),
            "two deviations are left in 1 of 20"
        );
    }
}
