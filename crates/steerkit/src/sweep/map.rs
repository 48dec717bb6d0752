//! A sweep's margins as a heat map.

use std::collections::BTreeSet;

use super::spec::{By, Spec};
use super::table::{Results, compared};
use crate::report::HeatMap;

impl Results {
    /// Two-sided margins: one column of keys against all others.
    pub fn heat_map(&self, spec: &Spec) -> HeatMap {
        let (split, table) = self.reported();
        let by = spec.choose.as_ref().map_or(By::default(), |choose| choose.by);
        let across = ["layer", "behaviour"].into_iter().find(|key| self.columns.iter().any(|c| c == key));
        let across = across.unwrap_or(&self.columns[0]);
        let keys: Vec<&str> = self.columns.iter().map(String::as_str).filter(|key| *key != across).collect();
        let (mut rows, mut columns): (Vec<Vec<&str>>, Vec<Vec<&str>>) = (Vec::new(), Vec::new());
        let mut cells: Vec<(usize, usize, f64)> = Vec::new();
        let mut at = String::new();
        for group in &table.groups {
            let Some(point) = compared(&group.points, by) else { continue };
            let row = place(&mut rows, keys.iter().map(|&key| group.keys[key].as_str()).collect());
            let column = place(&mut columns, vec![group.keys[across].as_str()]);
            cells.push((row, column, point.two_sided.value));
            if at.is_empty() || point.at.starts_with("equal") {
                at.clone_from(&point.at);
            }
        }
        let mut grid = vec![vec![None; columns.len()]; rows.len()];
        cells.into_iter().for_each(|(row, column, value)| grid[row][column] = Some(value));
        HeatMap {
            title: format!("two-sided margin in nats at {at}, {} pairs, by {across}", split.name()),
            rows: names(&keys, &rows),
            columns: columns.concat().into_iter().map(str::to_owned).collect(),
            cells: grid,
        }
    }
}

/// Where `entry` is in the list; it is added when it is not there yet.
fn place<'a>(list: &mut Vec<Vec<&'a str>>, entry: Vec<&'a str>) -> usize {
    list.iter().position(|other| *other == entry).unwrap_or_else(|| {
        list.push(entry);
        list.len() - 1
    })
}

/// A name for each row of values: its method, and what it takes to tell it from the other rows of this method.
fn names(keys: &[&str], rows: &[Vec<&str>]) -> Vec<String> {
    let method = keys.iter().position(|key| *key == "method");
    let name = |row: &Vec<&str>| {
        let peers: Vec<&Vec<&str>> =
            rows.iter().filter(|other| method.is_none_or(|m| other[m] == row[m])).collect();
        let shown = telling(&peers, keys.len());
        let parts =
            method.into_iter().chain(shown.into_iter().filter(|&at| Some(at) != method && row[at] != "-"));
        parts.map(|at| part(keys[at], row[at])).collect::<Vec<_>>().join(", ")
    };
    let short: Vec<String> = rows.iter().map(name).collect();
    match short.iter().collect::<BTreeSet<_>>().len() == rows.len() {
        true => short,
        false => rows.iter().map(|row| row.join(", ")).collect(),
    }
}

/// A value; a number with the end of its key.
fn part(key: &str, value: &str) -> String {
    match value.parse::<f64>() {
        Ok(_) => format!("{} {value}", key.rsplit('.').next().unwrap_or(key)),
        Err(_) => value.to_owned(),
    }
}

/// Few columns, in their order, that tell all rows apart by values that they have: the one that tells most apart first.
fn telling(rows: &[&Vec<&str>], columns: usize) -> BTreeSet<usize> {
    let mut chosen = BTreeSet::new();
    if rows.len() == 1 {
        return chosen;
    }
    let kinds = |of: &BTreeSet<usize>| {
        let values = rows.iter().map(|row| of.iter().map(|&at| row[at]).collect::<Vec<_>>());
        values.filter(|values| values.iter().any(|value| *value != "-")).collect::<BTreeSet<_>>().len()
    };
    let with = |chosen: &BTreeSet<usize>, at: usize| {
        let mut more = chosen.clone();
        more.insert(at);
        more
    };
    while kinds(&chosen) < rows.len() {
        // Of equally good ones the first.
        let best = (0..columns).rev().max_by_key(|&at| kinds(&with(&chosen, at)));
        match best.filter(|&at| kinds(&with(&chosen, at)) > kinds(&chosen)) {
            Some(at) => chosen.insert(at),
            None => break,
        };
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn rows_are_named_by_what_tells_them_apart() {
        let keys = ["objective.anchor", "optimised-by", "optimiser.lr", "method"];
        let rows = [
            vec!["0.0", "norm-budget", "-", "bipo"],
            vec!["0.0", "adamw", "0.1", "bipo"],
            vec!["1.0", "-", "-", "bipo"],
            vec!["-", "-", "0.002", "dpo-lora"],
        ];
        let expected =
            ["bipo, anchor 0.0, norm-budget", "bipo, anchor 0.0, adamw", "bipo, anchor 1.0", "dpo-lora"];
        assert_eq!(names(&keys, &rows), expected);
        // Without methods, and where short names would be the same.
        assert_eq!(names(&["steps"], &[vec!["8"], vec!["32"]]), ["steps 8", "steps 32"]);
        assert_eq!(names(&["a", "b"], &[vec!["x", "-"], vec!["-", "x"]]), ["x, -", "-, x"]);
    }
}
