//! The figures of the papers that vmferry reproduces, so that a report can say which of them it has, and which it has not.

/// A paper.
#[derive(Clone, Copy, Debug)]
pub struct Paper {
    /// Its name in scenarios.
    pub name: &'static str,
    /// Who wrote what.
    pub reference: &'static str,
    /// Its figures.
    pub figures: &'static [PaperFigure],
}

/// A figure or a table of a paper that shows what was measured.
#[derive(Clone, Copy, Debug)]
pub struct PaperFigure {
    /// As the paper numbers it.
    pub number: &'static str,
    /// What it shows.
    pub about: &'static str,
}

const fn figure(number: &'static str, about: &'static str) -> PaperFigure {
    PaperFigure { number, about }
}

/// All of them.
pub const PAPERS: [Paper; 5] = [
    Paper {
        name: "hybrid-learning",
        reference: "Gangadhar, Hota, Rao, Rao: Performance of Memory Virtualization Using Hybrid Live Migration of Virtual Machines (2018)",
        figures: &[
            figure(
                "Fig. 3",
                "data sent by pre-copy, post-copy, hybrid and hybrid with learning",
            ),
            figure("Fig. 4", "total migration time of the same"),
            figure("Fig. 5", "downtime of the same"),
            figure(
                "Fig. 6",
                "total time of hybrid with learning, with compression and parallel push",
            ),
        ],
    },
    Paper {
        name: "data-filter",
        reference: "Ruan, Cao, Wang: Efficient Live Migration of Virtual Machines with a Novel Data Filter (2014)",
        figures: &[
            figure("Table 1", "what the model and the filter cost"),
            figure("Fig. 2", "how often each memory-write state occurs"),
            figure("Fig. 4", "downtime by number of states, and by workload"),
            figure("Fig. 5", "migration time by number of states, and by workload"),
            figure("Fig. 6", "pages sent by number of states, and by workload"),
        ],
    },
    Paper {
        name: "enlightened",
        reference: "Abe, Geambasu, Joshi, Satyanarayanan: Urgent Virtual Machine Eviction with Enlightened Post-Copy (2015)",
        figures: &[
            figure(
                "Fig. 2",
                "throughput while QEMU migrates one of two contending guests, over three links",
            ),
            figure(
                "Fig. 5",
                "throughput of memcached while QEMU migrates it: two ratios of writes, three links",
            ),
            figure(
                "Fig. 10",
                "memcached: throughput of both guests, enlightened and live, over three links",
            ),
            figure("Fig. 11", "memcached: latency over time, and its distribution"),
            figure(
                "Fig. 12",
                "a database: throughput of both guests over three links",
            ),
            figure("Fig. 13", "a database: latency"),
            figure(
                "Fig. 14",
                "a store that keeps the processors busy: throughput of both guests",
            ),
            figure("Fig. 15", "the same: latency"),
            figure(
                "Fig. 16",
                "stop-and-copy and plain post-copy beside enlightened post-copy",
            ),
            figure("Table 2", "an idle guest: times, and what crosses how"),
            figure(
                "allocation micro-benchmark",
                "what keeping account of free pages costs malloc and free",
            ),
        ],
    },
    Paper {
        name: "performance-model",
        reference: "Sakhare, Vishwakarma: Evaluation of Virtualization and Live Migration techniques to Optimize Hardware and Software resources",
        figures: &[
            figure(
                "Fig. 1",
                "migration time of a guest that computes, by the source's CPU",
            ),
            figure("Fig. 2", "its model"),
            figure(
                "Fig. 3",
                "migration time of the same, by the CPU of source and destination",
            ),
            figure("Fig. 4", "its model by the destination's CPU"),
            figure(
                "Fig. 5",
                "migration time of a guest that reads or writes memory, by its intensity",
            ),
            figure("Fig. 6", "migration time of the same, by the source's CPU"),
            figure("Fig. 7", "its model: memory read"),
            figure("Fig. 8", "its model: memory write"),
            figure(
                "Fig. 9",
                "migration time of a guest that reads its disk, by the source's CPU",
            ),
            figure("Fig. 10", "its model"),
            figure(
                "section 4.D",
                "migration time of a guest that sends or receives, by the source's CPU",
            ),
            figure(
                "Table 1",
                "time that was predicted from five points beside time that was measured",
            ),
        ],
    },
    Paper {
        name: "vmresume",
        reference: "Shaikh: resuming virtual machines by the context of their data",
        figures: &[
            figure(
                "Fig. 1",
                "time to resume by the size of memory, by three mechanisms",
            ),
            figure(
                "Figs. 2 and 3",
                "time to resume, by configured and by allocated memory",
            ),
            figure("Fig. 4", "migration time of three guests: all, state, memory"),
            figure("Fig. 5", "downtime by size of memory"),
            figure("Fig. 6", "memory and data of three guests"),
            figure("Table II", "what is measured of the migration of three guests"),
        ],
    },
];

/// The paper and the figure of a name such as `data-filter Fig. 6`.
pub fn find(name: &str) -> Option<(&'static Paper, &'static PaperFigure)> {
    PAPERS.iter().find_map(|paper| {
        let number = name.strip_prefix(paper.name)?.strip_prefix(' ')?;
        let figure = paper.figures.iter().find(|figure| figure.number == number)?;
        Some((paper, figure))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_paper_and_number() {
        assert_eq!(find("data-filter Fig. 6").unwrap().1.number, "Fig. 6");
        assert!(find("data-filter Fig. 60").is_none() && find("xen Fig. 1").is_none());
    }
}
