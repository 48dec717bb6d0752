//! The page of a vector on two models.

use super::ReportProvenance;
use super::chart::{Axis, Chart, Series};
use super::escape::escape;
use super::figures::point;
use super::html::{answers_of, end, gallery, head, provenance};
use super::number::compact;
use super::scale::TickFormat;
use crate::transfer::{MarginPoint, Side, Transfer};

impl Transfer {
    /// What was found as one page that opens without a network. `made` says how it can be repeated.
    pub fn html(&self, made: &ReportProvenance) -> String {
        let title = format!("{} on another model", self.vector);
        let mut out = head(&title, "Transfer of a steering vector", &self.lead());
        out.push_str("</header>\n<section>\n<h2>Effect of the multiplier on both models</h2>\n");
        let charts = [
            self.chart("margins", "Margin against multiplier", |side| &side.margins),
            self.chart("translated", "Margin in another language against multiplier", |side| {
                &side.translated
            }),
        ];
        let caption = "How much likelier the chosen answer becomes, relative to the rejected one, in summed \
                       log-probabilities; bars are 95% bootstrap intervals over pairs.";
        gallery(&mut out, &charts, &[caption.to_owned(), caption.to_owned()]);
        out.push_str("</section>\n");
        for side in [&self.from, &self.to] {
            let heading = format!("Answers of {}", side.model.name);
            answers_of(&mut out, &heading, &side.answers, &self.vector);
        }
        provenance(&mut out, made);
        end(&mut out);
        out
    }

    fn lead(&self) -> String {
        let Self { from, to, .. } = self;
        let scaled = match to.factor {
            1.0 => String::new(),
            factor => format!(
                " It is multiplied by {} there, for the same share of the residual stream.",
                compact(factor, 3)
            ),
        };
        format!(
            "The vector {}, trained on {} and added after block {} (counted from 0), is measured on {}. The residual stream \
             there is {} times as long.{scaled} Its cosine with the mean difference of activations is {} on its own model \
             and {} on the other, and a multiplier moves the margin {} times as far.",
            escape(&self.vector),
            escape(&from.model.name),
            self.layer,
            escape(&to.model.name),
            compact(self.norm_ratio, 3),
            TickFormat::Signed.value(from.mean_difference_cosine),
            TickFormat::Signed.value(to.mean_difference_cosine),
            compact(self.strength, 3),
        )
    }

    fn chart(&self, id: &str, title: &str, points: impl Fn(&Side) -> &Vec<MarginPoint>) -> Chart {
        let sides = [("own model", &self.from), ("other model", &self.to)];
        let series = sides.map(|(label, side)| Series {
            label: label.into(),
            points: points(side).iter().map(|p| point(p.multiplier, p.margin)).collect(),
            ..Series::default()
        });
        Chart {
            id: id.into(),
            title: title.into(),
            description: "The margin in nats against the multiplier, on both models.".into(),
            x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
            y: Axis { label: "margin".into(), unit: "nats".into(), ..Axis::default() },
            series: series.into(),
            reference: None,
        }
    }
}
