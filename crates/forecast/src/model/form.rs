//! Forms that a model can have, from the simplest to the richest.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Axis;

/// The curve along every axis of a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curve {
    /// It does not depend on anything.
    Flat,
    /// A power of each.
    Power,
    /// A constant and a part for the inverse of each.
    Inverse,
}

/// A curve, and along what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// The curve.
    pub curve: Curve,
    /// The axes it depends on; none of a flat one.
    pub axes: Vec<FormAxis>,
}

/// An axis of a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormAxis {
    /// Which.
    pub axis: Axis,
    /// Whether it is flat from some value on.
    pub knee: bool,
}

impl Form {
    /// It does not depend on anything.
    pub fn flat() -> Self {
        Self {
            curve: Curve::Flat,
            axes: Vec::new(),
        }
    }

    /// A power of one axis: the paper's.
    pub fn power(axis: Axis) -> Self {
        Self {
            curve: Curve::Power,
            axes: vec![FormAxis { axis, knee: false }],
        }
    }

    /// A curve of several axes, all of them with or without a knee; flat where there are none.
    pub fn of(curve: Curve, axes: impl IntoIterator<Item = Axis>, knee: bool) -> Self {
        let axes: Vec<_> = axes.into_iter().map(|axis| FormAxis { axis, knee }).collect();
        match axes.is_empty() {
            true => Self::flat(),
            false => Self { curve, axes },
        }
    }

    /// Numbers that a fit has to find.
    pub fn parameters(&self) -> usize {
        1 + self
            .axes
            .iter()
            .map(|axis| 1 + usize::from(axis.knee))
            .sum::<usize>()
    }

    /// All forms over some of these axes, those of fewer parameters first.
    pub(super) fn all(axes: &[Axis]) -> Vec<Self> {
        let mut forms = vec![Self::flat()];
        // Each axis is not in it, in it, or in it with a knee.
        for choice in 1..3_usize.pow(axes.len() as u32) {
            let chosen = |index: usize| choice / 3_usize.pow(index as u32) % 3;
            let axes: Vec<FormAxis> = axes
                .iter()
                .enumerate()
                .filter(|(index, _)| chosen(*index) > 0)
                .map(|(index, &axis)| FormAxis {
                    axis,
                    knee: chosen(index) == 2,
                })
                .collect();
            forms.extend([Curve::Power, Curve::Inverse].map(|curve| Self {
                curve,
                axes: axes.clone(),
            }));
        }
        forms.sort_by_key(Self::parameters);
        forms
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.curve {
            Curve::Flat => "flat",
            Curve::Power => "power",
            Curve::Inverse => "inverse",
        })?;
        let knees = self.axes.iter().filter(|axis| axis.knee).count();
        if knees > 0 {
            f.write_str(" with a knee")?;
        }
        if self.axes.len() > 1 {
            let names: Vec<_> = self.axes.iter().map(|axis| axis.axis.to_string()).collect();
            write!(f, " of {}", names.join(" and "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_five_forms_of_one_axis_and_each_only_once() {
        let forms = Form::all(&[Axis::SourceCpu]);
        let names: Vec<_> = forms.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "flat",
                "power",
                "inverse",
                "power with a knee",
                "inverse with a knee"
            ]
        );
        assert_eq!(
            forms.iter().map(Form::parameters).collect::<Vec<_>>(),
            [1, 2, 2, 3, 3]
        );
        assert_eq!(Form::all(&[Axis::SourceCpu, Axis::DestinationCpu]).len(), 17);
        assert_eq!(Form::all(&[]), [Form::flat()]);
    }
}
