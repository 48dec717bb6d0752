//! `steerkit generate`.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use serde::Serialize;
use steerkit::eval::check_effect;
use steerkit_model::prompting::Prompting;
use steerkit_model::{Completion, Edit, Event, Finish, Model, Request, Sampling, Specials};

use super::gate::{GatePart, NamedGate};
use super::prompts;
use super::steering::{self, Applied, PlanPart};
use crate::args::GenerateArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Printer, Progress, side_by_side, signed};
use crate::signals;

/// One answer, as JSON shows it.
#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    /// What every multiplier of the plan was multiplied by.
    multiplier: f64,
    text: &'a str,
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    finish: &'static str,
    prompt_tokens: usize,
    system: Option<&'a str>,
    precision: &'static str,
    plan: Vec<PlanPart>,
    /// Whether the prompt met the condition of `--gate`; where not, the plan did not act.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<&'a GatePart>,
}

pub(crate) fn run(args: &GenerateArgs, printer: Printer) -> Outcome {
    let cancel = signals::install()?;
    let vectors =
        args.steering.steer.iter().map(|s| Applied::load(s, &args.steering)).collect::<Outcome<Vec<_>>>()?;
    let texts = match (&args.prompt, &args.prompts) {
        (Some(text), _) => vec![text.clone()],
        (None, Some(file)) => prompts::read(file)?,
        (None, None) => vec![prompts::from_stdin()?],
    };
    let at_once = args.batch.min(texts.len() * args.multipliers.len().max(1));
    let model = steering::open(&args.model, at_once)?;
    let system = steering::system_prompt(&args.steering, &vectors, printer);
    let system = if args.raw || model.chat_template()?.is_none() { None } else { system };
    let prompting = steering::prompting(&model, system)?;
    let factors = if args.multipliers.is_empty() { vec![1.0] } else { args.multipliers.clone() };
    let (requests, gates) = requests(args, &model, &vectors, &factors, &prompting, &texts, printer)?;
    let prompt_tokens: Vec<usize> = requests.iter().map(|request| request.prompt.len()).collect();
    let total = requests.len();
    let streams = total == 1 && printer.streams();
    let mut progress = (total > 1).then(|| Progress::steps(printer, "answering", total));
    let mut done = 0;
    let mut broken = Ok(());
    let completions = model.generate(requests, args.batch, &mut |event: &Event| {
        if let Ok(new) = &event.news {
            done += u64::from(new.finish.is_some());
            if let Some(progress) = &mut progress {
                progress.at(done, "");
            } else if streams {
                broken = printer.piece(new.text.as_deref().unwrap_or_default());
            }
        }
        let go_on = broken.is_ok() && !cancel.load(Ordering::Relaxed);
        if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    drop(progress);
    broken?;
    let completions = completions?;
    if streams {
        return printer.line("");
    }
    for (i, row) in completions.chunks(factors.len()).enumerate() {
        if let Some(gate) = &gates[i] {
            printer.say(format_args!("{gate}"));
        }
        if texts.len() > 1 || factors.len() > 1 {
            printer.heading(&texts[i])?;
        }
        show(&factors, row, printer)?;
        for (factor, completion) in factors.iter().zip(row) {
            printer.result(&Answer {
                prompt: &texts[i],
                multiplier: *factor,
                text: &completion.text,
                token_ids: &completion.tokens,
                logprobs: &completion.logprobs,
                finish: finish_name(completion.finish),
                prompt_tokens: prompt_tokens[i * factors.len()],
                system: prompting.system.as_deref(),
                precision: args.model.precision.resolve(at_once).name(),
                plan: vectors.iter().flat_map(|v| v.parts(*factor)).collect(),
                gate: gates[i].as_ref(),
            })?;
        }
    }
    Ok(())
}

/// Tokens of a prompt. Raw text is read for control tokens and gets the model's BOS by the usual rule.
fn tokens(prompting: &Prompting<'_>, text: &str, raw: bool) -> Outcome<Vec<u32>> {
    if !raw {
        return Ok(prompting.prompt(text)?);
    }
    let tokenizer = prompting.tokenizer;
    let mut tokens = tokenizer.encode(text, Specials::Parse)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    if let Some(bos) = bos.filter(|bos| tokens.first() != Some(bos)) {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}

/// The requests of every prompt at every factor, after a look at whether the vectors do anything, and what a gate says of
/// every prompt.
fn requests(
    args: &GenerateArgs,
    model: &Model,
    vectors: &[Applied],
    factors: &[f64],
    prompting: &Prompting<'_>,
    texts: &[String],
    printer: Printer,
) -> Outcome<(Vec<Request>, Vec<Option<GatePart>>)> {
    let strongest = factors.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(1.0);
    let plan = steering::plan(vectors, strongest)?;
    steering::warn(&plan, model, args.steering.force, printer)?;
    if args.raw && plan.needs_user() {
        return Err(Failure::usage("the token scope last-user needs a chat prompt, and --raw has none"));
    }
    let gate = args.gate.as_ref().map(|spec| NamedGate::load(spec, model, args.steering.force, printer));
    let gate = gate.transpose()?;
    let mut gates = Vec::with_capacity(texts.len());
    let mut requests = Vec::with_capacity(texts.len() * factors.len());
    for (i, text) in texts.iter().enumerate() {
        let prompt = tokens(prompting, text, args.raw)?;
        let shape = plan.shape(prompting, text, prompt.len())?;
        let reading = gate.as_ref().map(|gate| gate.read(model, &gate.shaped(prompting, text, &prompt)?));
        let reading = reading.transpose()?;
        for &factor in factors {
            let plan = steering::plan(vectors, factor)?;
            let edits = plan.edits(model.config(), &shape)?;
            if i == 0 {
                check_effect(model, &plan, &edits, &prompt)?;
            }
            let open = reading.as_ref().is_none_or(GatePart::is_open);
            requests.push(request(args, prompt.clone(), if open { edits } else { Vec::new() }));
        }
        gates.push(reading);
    }
    Ok((requests, gates))
}

fn request(args: &GenerateArgs, prompt: Vec<u32>, edits: Vec<Edit>) -> Request {
    Request {
        prompt,
        edits,
        sampling: Sampling::from(&args.sampling),
        max_tokens: args.sampling.max_tokens,
        stop: args.sampling.stop.clone(),
        ..Request::default()
    }
}

/// Answers to one prompt for people.
fn show(factors: &[f64], row: &[Completion], printer: Printer) -> Outcome {
    match row {
        [only] => printer.line(&only.text),
        _ => {
            let heads: Vec<String> = factors.iter().map(|&factor| signed(factor)).collect();
            let texts: Vec<&str> = row.iter().map(|completion| completion.text.as_str()).collect();
            printer.line(side_by_side(&heads, &texts))
        }
    }
}

/// As JSON shows it.
pub(crate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::End => "end",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}
