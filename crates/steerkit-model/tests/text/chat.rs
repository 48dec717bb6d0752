//! Chat templates: what Hugging Face's engine gives, and what a template may not do.

use steerkit_model::{ChatTemplate, Message, ModelError};

fn messages() -> Vec<Message> {
    [("system", "S y s"), ("user", " Hi <b> "), ("assistant", "Hé\n\"x\""), ("user", "Bye")]
        .map(|(role, content)| Message::new(role, content))
        .to_vec()
}

fn render(source: &str) -> Result<String, ModelError> {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(&messages(), true)
}

/// Renderings by transformers' `apply_chat_template` (tests/data/make_templates.py).
#[test]
fn golden_renderings_equal_transformers() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("../data/templates.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 30);
    for case in cases {
        let source = case["template"].as_str().unwrap();
        match case["text"].as_str() {
            Some(expected) => match render(source) {
                Ok(text) => assert_eq!(text, expected, "{source}"),
                Err(e) => panic!("{source}: {e}"),
            },
            None => assert!(render(source).is_err(), "{source}"),
        }
    }
}

/// Templates of popular models with and without a system message (tests/data/make_popular_templates.py).
#[test]
fn golden_templates_of_popular_models() {
    let cases: serde_json::Value =
        serde_json::from_str(include_str!("../data/popular_templates.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 10);
    let plain =
        [("user", "Hi there "), ("assistant", "Hello!"), ("user", "Why?")].map(|(r, c)| Message::new(r, c));
    for case in cases {
        let model = case["model"].as_str().unwrap();
        let template =
            ChatTemplate::new(case["template"].as_str().unwrap(), Some("<s>"), Some("</s>")).unwrap();
        let system = std::iter::once(Message::new("system", "Be brief.")).chain(plain.iter().cloned());
        for (kind, messages) in [("system", system.collect::<Vec<_>>()), ("plain", plain.to_vec())] {
            match (template.render(&messages, true), case[kind].as_str()) {
                (Ok(text), Some(expected)) => assert_eq!(text, expected, "{model}, {kind}"),
                (Err(_), None) => (),
                (found, expected) => panic!("{model}, {kind}: found {found:?}, expected {expected:?}"),
            }
        }
        assert_eq!(template.supports_system(), case["system"].is_string(), "{model}");
    }
}

#[test]
fn a_raising_template_says_its_reason_and_line() {
    let error = render("a\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(error.to_string(), "chat template: line 2: roles must alternate");
}

#[test]
fn broken_templates_are_refused_at_once() {
    for source in
        ["{% for %}", "{{ a", "{% if x %}", "{% nonsense %}", "{{ 1 + }}", "{% endfor %}", "{{ 'a }}"]
    {
        let error = ChatTemplate::new(source, None, None).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{source}: {error}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (source, name) in [
        ("{% include 'x' %}", "include"),
        ("{% extends 'x' %}", "extends"),
        ("{% call f() %}{% endcall %}", "call blocks"),
        ("{% for x in [] recursive %}{% endfor %}", "recursive"),
        ("{% for x in [] %}{% macro f() %}{% endmacro %}{% endfor %}", "macros inside"),
        ("{{ f(*x) }}", "*"),
    ] {
        let error = ChatTemplate::new(source, None, None).unwrap_err();
        assert!(error.to_string().contains(name), "{source}: {error}");
    }
    for (source, name) in [
        ("{{ '%s'|format('x') }}", "format"),
        ("{{ ''.__class__.__mro__ }}", "undefined"),
        ("{{ ''.__class__() }}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages.__init__.__globals__ }}", "undefined"),
        ("{{ debug() }}", "debug"),
    ] {
        let error = render(source).unwrap_err();
        assert!(error.to_string().contains(name), "{source}: {error}");
    }
}

#[test]
fn whether_system_messages_are_taken_is_found_out() {
    let template = |source: &str| ChatTemplate::new(source, None, None).unwrap();
    assert!(template("{% for m in messages %}{{ m.content }}{% endfor %}").supports_system());
    assert!(
        !template("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
            .supports_system()
    );
    assert!(!template("{{ raise_exception('no') }}").supports_system());
}

#[test]
fn dates_are_fixed_or_the_template_s_own() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
    let own = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}own{% endif %}";
    assert_eq!(render(own).unwrap(), "own");
}

#[test]
fn marks_of_the_assistant_s_part_are_passed_over() {
    let source = "{% for m in messages %}{%- generation -%}{{ m.role[0] }}{% endgeneration %}{% endfor %}";
    let expected = render(&source.replace("endgeneration", "endif").replace("generation", "if true"));
    assert_eq!(render(source).unwrap(), expected.unwrap());
    assert!(ChatTemplate::new("{% generations %}", None, None).is_err());
}

/// A long conversation is no bomb.
#[test]
fn long_conversations_are_rendered() {
    let source = "{% set ns = namespace(seen=0) %}{% for m in messages %}{% set content = m['content'] | trim %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{% set ns.seen = ns.seen + 1 %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% if loop.last and m.role == 'user' and messages|length > 1 %}{{ '<|im_start|>assistant\n' }}{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    let turns = |n: usize, bytes: usize| -> Vec<Message> {
        (0..n).map(|i| Message::new(["user", "assistant"][i % 2], "word ".repeat(bytes / 5))).collect()
    };
    for (n, bytes) in [(2, 5_000_000), (1000, 2000), (5000, 20)] {
        let text = template.render(&turns(n, bytes), true).unwrap();
        assert!(text.len() >= n * (bytes - 1));
    }
}
