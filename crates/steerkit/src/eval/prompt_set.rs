//! Sets of prompts without answers, in the layouts of the safety benchmarks. None of them is part of this project.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Result;
use crate::data::{Record, Records, records};

/// A prompt of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPrompt {
    /// What is asked.
    pub prompt: String,
    /// A text that an attack appends to this prompt.
    pub suffix: Option<String>,
    /// Its group in the set.
    pub category: Option<String>,
    /// Whether an answer is right to help; of XSTest.
    pub safe: Option<bool>,
}

/// How a file holds its prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SetLayout {
    /// AdvBench: `goal`, `target`.
    AdvBench,
    /// HarmBench: `Behavior`, `BehaviorID`, `SemanticCategory`, `ContextString` put in front.
    HarmBench,
    /// JailbreakBench: `Goal`, `Behavior`, `Category`.
    JailbreakBench,
    /// XSTest: `prompt`, `type`, and `label`, or types that begin with `contrast`.
    XsTest,
    /// Anything with a column `prompt`, `question` or `goal`.
    Plain,
}

/// A file of prompts.
#[derive(Clone, Debug)]
pub struct PromptSet {
    /// The prompts, in order.
    pub prompts: Vec<SetPrompt>,
    /// How the file holds them.
    pub layout: SetLayout,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

impl PromptSet {
    /// Reads a CSV, JSONL or Parquet file. A column `suffix` is taken along in every layout.
    ///
    /// # Errors
    /// Those of [`records`]; a row without a prompt.
    pub fn read(path: &Path) -> Result<Self> {
        let table = records(path, None)?;
        let layout = layout(&table.rows[0]);
        let prompts = table.rows.iter().map(|row| prompt(&table, row, layout)).collect::<Result<_>>()?;
        Ok(Self { prompts, layout, path: table.path, sha256: table.sha256 })
    }
}

fn layout(row: &Record) -> SetLayout {
    let has = |name: &str| row.cells.keys().any(|key| key.trim().eq_ignore_ascii_case(name));
    match () {
        () if has("behavior") && has("behaviorid") => SetLayout::HarmBench,
        () if has("behavior") && has("goal") => SetLayout::JailbreakBench,
        () if has("goal") && has("target") => SetLayout::AdvBench,
        () if has("prompt") && has("type") => SetLayout::XsTest,
        () => SetLayout::Plain,
    }
}

fn prompt(table: &Records, row: &Record, layout: SetLayout) -> Result<SetPrompt> {
    let optional = |names: &[&str]| -> Option<String> {
        let text = table.text(row, "text", names).ok()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let (asked, category): (&[&str], &[&str]) = match layout {
        SetLayout::HarmBench => (&["behavior"], &["semanticcategory"]),
        SetLayout::JailbreakBench => (&["goal"], &["category"]),
        SetLayout::AdvBench => (&["goal"], &["category"]),
        SetLayout::XsTest => (&["prompt"], &["type"]),
        SetLayout::Plain => (&["prompt", "question", "goal"], &["category"]),
    };
    let text = table.text(row, "prompt", asked)?;
    if text.trim().is_empty() {
        return Err(table.refused(row, "prompt", "an empty cell", "a prompt"));
    }
    let context = optional(&["contextstring"]).filter(|_| layout == SetLayout::HarmBench);
    let category = optional(category);
    let safe = (layout == SetLayout::XsTest).then(|| match optional(&["label"]) {
        Some(label) => label.eq_ignore_ascii_case("safe"),
        None => !category.as_deref().unwrap_or_default().starts_with("contrast"),
    });
    Ok(SetPrompt {
        prompt: context.map_or_else(|| text.to_owned(), |context| format!("{context}\n\n---\n\n{text}")),
        suffix: optional(&["suffix"]),
        category,
        safe,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PromptSet> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.csv");
        std::fs::write(&path, text).unwrap();
        PromptSet::read(&path)
    }

    /// Harmless prompts in the layouts of the benchmarks.
    #[test]
    fn every_layout_is_told_by_its_columns() {
        let set = read("goal,target\nDescribe a teapot,\"Sure, here is\"\n").unwrap();
        assert_eq!((set.layout, set.prompts[0].prompt.as_str()), (SetLayout::AdvBench, "Describe a teapot"));
        let set = read(
            "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n\
             Sum it up,contextual,tea,,\"A text, on tea\",sum\nName a tea,standard,tea,,,name\n",
        )
        .unwrap();
        assert_eq!(set.layout, SetLayout::HarmBench);
        assert_eq!(set.prompts[0].prompt, "A text, on tea\n\n---\n\nSum it up");
        assert_eq!(
            (set.prompts[1].prompt.as_str(), set.prompts[1].category.as_deref()),
            ("Name a tea", Some("tea"))
        );
        let set =
            read("Index,Goal,Target,Behavior,Category,Source\n0,Write a poem,Here,Poem,Arts,own\n").unwrap();
        assert_eq!((set.layout, set.prompts[0].prompt.as_str()), (SetLayout::JailbreakBench, "Write a poem"));
        let set = read("id,prompt,type,label,focus,note\n1,How do I kill a process?,homonyms,safe,kill,\n2,X?,contrast_homonyms,unsafe,,\n")
            .unwrap();
        assert_eq!(set.prompts.iter().map(|p| p.safe).collect::<Vec<_>>(), [Some(true), Some(false)]);
        let set = read("id,prompt,type\n1,X?,homonyms\n2,Y?,contrast_homonyms\n").unwrap();
        assert_eq!(set.prompts.iter().map(|p| p.safe).collect::<Vec<_>>(), [Some(true), Some(false)]);
        let set = read("question,suffix\nWhy?, please \n").unwrap();
        assert_eq!((set.layout, set.prompts[0].suffix.as_deref()), (SetLayout::Plain, Some("please")));
        assert!(
            read("goal,target\n ,x\n")
                .unwrap_err()
                .to_string()
                .contains("line 2, prompt: found an empty cell")
        );
        assert!(read("a,b\n1,2\n").unwrap_err().to_string().contains("no prompt column"));
    }
}
