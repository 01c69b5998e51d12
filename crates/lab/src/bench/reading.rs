//! Results of a bench that is over, read to be shown or compared.

use std::path::Path;

use super::catalog;
use super::results::{FORMAT, Results, Run};
use super::scenario::{Guest, Scenario};
use crate::error::{LabError, Result};

impl Results {
    /// Reads a file of results. Returns what is in it byte by byte too.
    ///
    /// # Errors
    /// When it cannot be read, or holds anything else.
    pub fn read(file: &Path) -> Result<(Self, Vec<u8>)> {
        let bytes = std::fs::read(file).map_err(LabError::system(format!("read {}", file.display())))?;
        let other = |why: String| LabError::NoResults {
            path: file.to_owned(),
            why,
        };
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| other(format!("holds something else than results of a bench ({error})")))?;
        // Before the rest, which may have another shape then.
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(other(format!(
                    "has format {format}, and this version reads format {FORMAT}; read it with the version that wrote it"
                )));
            }
            None => return Err(other("holds something else than results of a bench".into())),
        }
        let results =
            serde_json::from_value(value).map_err(|error| other(format!("is damaged ({error})")))?;
        Ok((results, bytes))
    }

    /// The same with what is said and shown of them as the scenario has it now: claims and figures may have been written after
    /// the runs were made. Results of another scenario, or of one in which a guest, a link or a variant that has runs was
    /// something else then, keep their own.
    #[must_use]
    pub fn renewed(mut self) -> Self {
        if let Ok((_, scenario)) = catalog::find(&self.scenario) {
            let scenario = if self.quick { scenario.quick() } else { scenario };
            if self.fit(&scenario) {
                self.title.clone_from(&scenario.title);
                self.source.clone_from(&scenario.source);
                self.content.claims = scenario.claims;
                self.content.figures = scenario.figures;
            }
        }
        self.summarise();
        self
    }

    /// Whether the runs are such as this scenario would make. It may have more guests, links and variants.
    fn fit(&self, scenario: &Scenario) -> bool {
        let old = &self.content;
        let times = |of: &Scenario| [of.warm_up_s, of.cool_down_s, of.limit_s];
        let guest = |of: &Scenario, name: &str| {
            let guest = of.guests.iter().find(|guest| guest.name == name).cloned();
            guest.map(|guest| Guest { quick: None, ..guest })
        };
        let variant =
            |of: &Scenario, name: &str| of.variants.iter().find(|variant| variant.name() == name).cloned();
        let same = |run: &Run| {
            guest(old, &run.key.guest) == guest(scenario, &run.key.guest)
                && variant(old, &run.key.variant) == variant(scenario, &run.key.variant)
                && scenario.links.contains(&run.key.link)
        };
        times(old) == times(scenario)
            && old.host_options == scenario.host_options
            && self.runs.iter().all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_old_runs_is_what_the_scenario_says_now() {
        let (name, scenario) = catalog::find("write-loop-filter").unwrap();
        let mut old = scenario.clone();
        old.claims.clear();
        old.figures.clear();
        let results = Results::new(&name, &old, false).renewed();
        assert_eq!(results.content.claims, scenario.claims);
        old.warm_up_s += 1.0;
        let other = Results::new(&name, &old, false).renewed();
        assert!(other.content.claims.is_empty(), "that measured something else");
    }

    #[test]
    fn files_are_read_back_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.json");
        let (name, scenario) = catalog::find("encodings").unwrap();
        Results::new(&name, &scenario, true).store(&file).unwrap();
        let (results, bytes) = Results::read(&file).unwrap();
        assert_eq!((results.scenario.as_str(), results.quick), ("encodings", true));
        assert_eq!(bytes, std::fs::read(&file).unwrap());
        for (content, named) in [
            ("[1]", "something else"),
            ("{", "something else"),
            (r#"{"format": 99}"#, "format 99"),
        ] {
            std::fs::write(&file, content).unwrap();
            let error = Results::read(&file).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("r.json"), "{error}");
        }
        std::fs::write(&file, format!("{{\"format\": {FORMAT}}}")).unwrap();
        assert!(Results::read(&file).unwrap_err().to_string().contains("damaged"));
    }
}
