//! What the agent costs its guest. Source: Abe et al., "Urgent virtual machine eviction with enlightened post-copy" (2015), section
//! 5.4, where a patched kernel keeps account of free pages; here the kernel is as it is, and what can cost is the agent.

use std::time::{Duration, Instant};

use vmferry_api::AgentRequest;

use super::{Bed, ExperimentReport};
use crate::bench::plan::GUEST;
use crate::bench::scenario::AgentUse;
use crate::error::Result;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take: tens of times what it does.
const PATIENCE_MS: u64 = 60_000;

impl Bed<'_> {
    pub(super) fn agent(&self, agent: AgentUse, for_s: f64) -> Result<ExperimentReport> {
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(for_s);
        let mut answers = Vec::new();
        while agent == AgentUse::Asked && Instant::now() < end {
            let asked = Instant::now();
            let request = AgentRequest {
                timeout_ms: PATIENCE_MS,
                balloon: false,
                classes: true,
            };
            self.hosts[0].agent(GUEST, request)?;
            answers.push(asked.elapsed().as_secs_f64() * 1e3);
            self.interrupt.sleep(EVERY.saturating_sub(asked.elapsed()))?;
        }
        self.interrupt
            .sleep(end.saturating_duration_since(Instant::now()))?;
        let mut report = ExperimentReport {
            total_ms: begin.elapsed().as_secs_f64() * 1e3,
            ..ExperimentReport::default()
        };
        answers.sort_by(f64::total_cmp);
        if !answers.is_empty() {
            let median = crate::bench::statistics::quantile(&answers, 0.5);
            report
                .figures
                .insert("questions".to_owned(), answers.len() as f64);
            report.figures.insert("answer_ms".to_owned(), median);
        }
        Ok(report)
    }
}
