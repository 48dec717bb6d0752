//! Chat templates that want the machine: each is answered within a second and under 64 MB over what the process holds.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::time::{Duration, Instant};

use steerkit_model::{ChatTemplate, Message, ModelError};

/// Peak memory of this process since the last call, in bytes, where the system tells.
fn peak_since_last() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    let peak = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    // Writing 5 sets the peak to what is held now.
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    Some(peak)
}

fn render(source: &str) -> Result<String, ModelError> {
    let messages = [Message::new("user", "Hi"), Message::new("assistant", "Ho")];
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(&messages, true)
}

fn bombs() -> Vec<(&'static str, String)> {
    let doubling = |step: &str| {
        format!(
            "{{% set ns = namespace(s='aaaaaaaa', l=[1]) %}}{{% for i in range(40) %}}{step}{{% endfor %}}"
        )
    };
    let twice = doubling("{% set ns.l = [ns.l, ns.l] %}");
    vec![
        ("doubling with ~", doubling("{% set ns.s = ns.s ~ ns.s %}")),
        ("doubling with +", doubling("{% set ns.s = ns.s + ns.s %}")),
        ("doubling by capture", doubling("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}")),
        ("doubling by macro", "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set ns.s = m(ns.s) %}{% endfor %}".to_owned()),
        ("doubling with filter block", doubling("{% set ns.s %}{% filter upper %}{{ ns.s }}{{ ns.s }}{% endfilter %}{% endset %}")),
        ("doubling with join", doubling("{% set ns.s = [ns.s, ns.s]|join %}")),
        ("doubling with join method", doubling("{% set ns.s = ns.s.join([ns.s, ns.s]) %}")),
        ("doubling with replace", doubling("{% set ns.s = ns.s|replace('a', 'aa') %}")),
        ("doubling with replace method", doubling("{% set ns.s = ns.s.replace('a', 'aa') %}")),
        ("doubling with tojson", doubling("{% set ns.s = [ns.s, ns.s]|tojson %}")),
        ("doubling with string", doubling("{% set ns.s = [ns.s, ns.s]|string %}")),
        ("doubling lists", doubling("{% set ns.l = ns.l + ns.l %}")),
        ("nested lists", twice.clone()),
        ("nested lists shown", format!("{twice}{{{{ ns.l }}}}")),
        ("nested lists by literals", "{% set a = [1,1,1,1,1,1,1,1,1,1] %}{% set b = [a,a,a,a,a,a,a,a,a,a] %}{% set c = [b,b,b,b,b,b,b,b,b,b] %}{% set d = [c,c,c,c,c,c,c,c,c,c] %}{% set e = [d,d,d,d,d,d,d,d,d,d] %}{% set f = [e,e,e,e,e,e,e,e,e,e] %}{% set g = [f,f,f,f,f,f,f,f,f,f] %}{% set h = [g,g,g,g,g,g,g,g,g,g] %}{{ h == h }}{{ h|tojson }}{{ h }}".to_owned()),
        ("deep list", "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}".to_owned()),
        ("deep map", "{% set ns = namespace(l={}) %}{% for i in range(99999) %}{% set ns.l = {'a': ns.l} %}{% endfor %}".to_owned()),
        ("deep namespace", "{% set ns = namespace(l=1) %}{% for i in range(99999) %}{% set ns.l = namespace(l=ns.l) %}{% endfor %}".to_owned()),
        ("endless namespace", "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}".to_owned()),
        ("endless namespace in a list", "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns }}".to_owned()),
        ("endless namespace in a dict", "{% set ns = namespace() %}{% set ns.me = dict(a=ns) %}{{ ns }}".to_owned()),
        ("format width", "{{ '%2000000000s'|format('a') }}".to_owned()),
        ("format method", "{{ '{:2000000000}'.format('a') }}".to_owned()),
        ("string times number", "{{ 'a' * 10**9 }}".to_owned()),
        ("number times string", "{{ 10**9 * 'a' }}".to_owned()),
        ("constants folded", "{{ ('a' * 99999999) ~ ('b' * 99999999) }}".to_owned()),
        ("list times number", "{{ [1] * 99999999 }}".to_owned()),
        ("indent", "{{ 'a\nb'|indent(2000000000) }}".to_owned()),
        ("tojson indent", "{{ [[[[1]]]]|tojson(indent=2000000000) }}".to_owned()),
        ("replace nothing", "{{ ('a' * 99999)|replace('', 'b' * 99999) }}".to_owned()),
        ("join", "{{ range(99999)|join('a' * 99999) }}".to_owned()),
        ("list of characters", "{% set ns = namespace(l=0) %}{% for i in range(99) %}{% set ns.l = ('a' * 999999)|list %}{% endfor %}".to_owned()),
        ("split", "{% for i in range(9999) %}{% set x = ('a,' * 99999).split(',') %}{% endfor %}".to_owned()),
        ("loop over characters", "{% for c in 'a' * 9999999 %}{% endfor %}".to_owned()),
        ("nested loops", "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}".to_owned()),
        ("empty nested loops", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}".to_owned()),
        ("big ranges", "{% for a in range(9999) %}{% for b in range(99999) %}{% break %}{% endfor %}{% endfor %}".to_owned()),
        ("searching", "{% set s = 'a' * 999999 %}{% for a in range(99999) %}{{ 'b' in s }}{{ s == s }}{{ s.count('b') }}{{ s is endingwith 'b' }}{% endfor %}".to_owned()),
        ("trimming", "{% set s = 'a' * 99999 %}{% for a in range(9999) %}{% set x = s.strip(s) %}{% endfor %}".to_owned()),
        ("trim filter", "{% set s = 'a' * 99999 %}{% for a in range(9999) %}{% set x = s|trim(s) %}{% endfor %}".to_owned()),
        ("slicing", "{% set s = 'a' * 999999 %}{% for a in range(99999) %}{% set x = s[1:] %}{% endfor %}".to_owned()),
        ("sorting", "{% set l = range(99999)|list %}{% for a in range(99999) %}{% set x = l|sort %}{% endfor %}".to_owned()),
        ("macro recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        ("macro recursion, two ways", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        ("raw text in a loop", format!("{{% set x %}}{{% for a in range(99999) %}}{}{{% endfor %}}{{% endset %}}", "x".repeat(60_000))),
        ("raw text shown in a loop", format!("{{% for a in range(99999) %}}{}{{% endfor %}}", "x".repeat(60_000))),
        ("a megabyte of text", "x".repeat(1 << 20)),
        ("a megabyte of tags", "{{a}}".repeat(200_000)),
        ("many tags", "{{a}}\n".repeat(40_000)),
        ("many assignments", "{% set a = 1 %}\n".repeat(16_000)),
        ("attributes", format!("{{{{ a{} }}}}", ".a".repeat(30_000))),
        ("attributes, as many as may be", format!("{{{{ a{} }}}}", ".a".repeat(999))),
        ("sums", format!("{{{{ 1{} }}}}", "+1".repeat(30_000))),
        ("sums, as many as may be", format!("{{{{ 1{} }}}}", "+1".repeat(990))),
        ("negations", format!("{{{{ {}1 }}}}", "-".repeat(1990))),
        ("nots", format!("{{{{ {}1 }}}}", "not ".repeat(1990))),
        ("filters", format!("{{{{ 'a'{} }}}}", "|trim".repeat(990))),
        ("calls", format!("{{{{ a{} }}}}", "()".repeat(990))),
        ("parentheses", format!("{{{{ {}1{} }}}}", "(".repeat(30_000), ")".repeat(30_000))),
        ("brackets", format!("{{{{ {}1{} }}}}", "[".repeat(900), "]".repeat(900))),
        ("conditions", format!("{{{{ {}1 }}}}", "1 if x else ".repeat(600))),
        ("powers", format!("{{{{ 2{} }}}}", "**2".repeat(900))),
        ("elif", format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}\n".repeat(19_000))),
        ("elif, as many as may be", format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(499))),
        ("nested if", format!("{}{}", "{% if a %}\n".repeat(10_000), "{% endif %}\n".repeat(10_000))),
        ("nested loops in the source", format!("{}{}", "{% for a in b %}\n".repeat(5_000), "{% endfor %}\n".repeat(5_000))),
        ("a long line of tags", "{{a}}".repeat(50_000)),
        ("many lines", "\n".repeat(200_000)),
        ("a long number", format!("{{{{ {} }}}}", "9".repeat(60_000))),
        ("class", "{{ ''.__class__.__mro__[1].__subclasses__() }}".to_owned()),
        ("unclosed", "{{ ".to_owned()),
        ("nothing", String::new()),
    ]
}

#[test]
fn bombs_are_answered_quickly_in_little_memory() {
    // Allocator and thread start-up are not the template's.
    render("{{ messages[0].content }}").unwrap();
    for (name, source) in bombs() {
        let before = peak_since_last().and_then(|_| peak_since_last());
        let start = Instant::now();
        let answer = render(&source);
        let took = start.elapsed();
        let used = before.zip(peak_since_last()).map_or(0, |(before, after)| after.saturating_sub(before));
        let answer = match &answer {
            Ok(text) => format!("{} bytes", text.len()),
            Err(e) => e.to_string().chars().take(90).collect(),
        };
        println!("{name}: {:.3} s, {} MB: {answer}", took.as_secs_f64(), used >> 20);
        assert!(took < Duration::from_secs(1), "{name}: {took:?}");
        assert!(used < 64 << 20, "{name}: {used} bytes");
    }
}
