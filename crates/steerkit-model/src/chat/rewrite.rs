//! Rewrites a template's syntax tree so that every operation that can make a large value goes through a function that
//! pays for it ([`super::operators`]).
//!
//! The engine bounds steps but not memory: 26 times `{% set ns.s = ns.s ~ ns.s %}` makes gigabytes in a hundred steps.
//! It offers no hook for its operators, but its parser and its code generator are public, so the tree between them is
//! rebuilt: `a ~ b` becomes a call of the function named `~`, a list literal a call of `[]`, template text an expression
//! that the formatter pays for. A template cannot name these functions, as their names are no identifiers.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{
    BinOp, BinOpKind, Call, CallArg, Compare, CompareOpKind, Const, Do, EmitExpr, Expr, Filter, FilterBlock,
    ForLoop, GetAttr, GetItem, IfCond, IfExpr, List, Macro, Set, SetBlock, Spanned, Stmt, Template, Test,
    Tuple, UnaryOp, UnaryOpKind, Var, WithBlock,
};
use minijinja::{Error, Value};

use super::budget::refused;

type Result<T> = std::result::Result<T, Error>;

/// The template with every operation that can make a large value replaced by a call.
pub(super) fn template<'s>(stmt: &Stmt<'s>) -> Result<Stmt<'s>> {
    Rewriter { nested: 0 }.stmt(stmt)
}

struct Rewriter {
    /// How many loops and macros surround this place.
    nested: usize,
}

impl Rewriter {
    fn body<'s>(&mut self, body: &[Stmt<'s>]) -> Result<Vec<Stmt<'s>>> {
        body.iter().map(|stmt| self.stmt(stmt)).collect()
    }

    fn stmt<'s>(&mut self, stmt: &Stmt<'s>) -> Result<Stmt<'s>> {
        Ok(match stmt {
            Stmt::Template(s) => {
                Stmt::Template(Spanned::new(Template { children: self.body(&s.children)? }, s.span()))
            }
            Stmt::EmitExpr(s) => Stmt::EmitExpr(Spanned::new(EmitExpr { expr: expr(&s.expr)? }, s.span())),
            Stmt::EmitRaw(s) => {
                let text = constant(Value::from(s.raw), s.span());
                Stmt::EmitExpr(Spanned::new(EmitExpr { expr: text }, s.span()))
            }
            Stmt::ForLoop(s) => Stmt::ForLoop(Spanned::new(self.for_loop(s, s.span())?, s.span())),
            Stmt::IfCond(s) => {
                let cond = IfCond {
                    expr: expr(&s.expr)?,
                    true_body: self.body(&s.true_body)?,
                    false_body: self.body(&s.false_body)?,
                };
                Stmt::IfCond(Spanned::new(cond, s.span()))
            }
            Stmt::WithBlock(s) => {
                let assign = |(to, from): &(Expr<'s>, Expr<'s>)| Ok((target(to)?, expr(from)?));
                let assignments = s.assignments.iter().map(assign).collect::<Result<_>>()?;
                Stmt::WithBlock(Spanned::new(WithBlock { assignments, body: self.body(&s.body)? }, s.span()))
            }
            Stmt::Set(s) => {
                let value = expr(&s.expr)?;
                let value = match &s.target {
                    Expr::GetAttr(_) => call("stored", vec![value], s.span()),
                    _ => value,
                };
                Stmt::Set(Spanned::new(Set { target: target(&s.target)?, expr: value }, s.span()))
            }
            Stmt::SetBlock(s) => {
                let set = SetBlock {
                    target: target(&s.target)?,
                    filter: option(s.filter.as_ref())?,
                    body: self.body(&s.body)?,
                };
                Stmt::SetBlock(Spanned::new(set, s.span()))
            }
            Stmt::FilterBlock(s) => {
                let block = FilterBlock { filter: expr(&s.filter)?, body: self.body(&s.body)? };
                Stmt::FilterBlock(Spanned::new(block, s.span()))
            }
            Stmt::Macro(s) => Stmt::Macro(Spanned::new(self.macro_(s)?, s.span())),
            Stmt::Do(s) => {
                let call = Spanned::new(call_parts(&s.call)?, s.call.span());
                Stmt::Do(Spanned::new(Do { call }, s.span()))
            }
            Stmt::Continue(s) => Stmt::Continue(Spanned::new(minijinja::machinery::ast::Continue, s.span())),
            Stmt::Break(s) => Stmt::Break(Spanned::new(minijinja::machinery::ast::Break, s.span())),
            Stmt::AutoEscape(_) => return Err(refused("autoescape blocks")),
            Stmt::CallBlock(_) => return Err(refused("call blocks")),
            Stmt::Block(_) | Stmt::Extends(_) | Stmt::Include(_) | Stmt::Import(_) | Stmt::FromImport(_) => {
                return Err(refused("other templates (block, extends, include, import)"));
            }
        })
    }

    fn for_loop<'s>(&mut self, s: &ForLoop<'s>, span: Span) -> Result<ForLoop<'s>> {
        if s.recursive {
            return Err(refused("recursive loops"));
        }
        self.nested += 1;
        let body = self.body(&s.body);
        self.nested -= 1;
        Ok(ForLoop {
            target: target(&s.target)?,
            iter: call("items of", vec![expr(&s.iter)?], span),
            filter_expr: option(s.filter_expr.as_ref())?,
            recursive: false,
            body: body?,
            else_body: self.body(&s.else_body)?,
        })
    }

    /// Each time a macro is declared the engine keeps its surroundings to the end, so it may not be declared again and
    /// again.
    fn macro_<'s>(&mut self, s: &Macro<'s>) -> Result<Macro<'s>> {
        if self.nested > 0 {
            return Err(refused("macros inside loops or macros"));
        }
        self.nested += 1;
        let body = self.body(&s.body);
        self.nested -= 1;
        Ok(Macro {
            name: s.name,
            args: s.args.iter().map(target).collect::<Result<_>>()?,
            defaults: exprs(&s.defaults)?,
            body: body?,
        })
    }
}

/// What is assigned to: names, tuples of names, the attribute of a namespace.
fn target<'s>(e: &Expr<'s>) -> Result<Expr<'s>> {
    let all = |items: &[Expr<'s>]| items.iter().map(target).collect::<Result<Vec<_>>>();
    Ok(match e {
        Expr::Var(s) => Expr::Var(Spanned::new(Var { id: s.id }, s.span())),
        Expr::List(s) => Expr::List(Spanned::new(List { items: all(&s.items)? }, s.span())),
        Expr::Tuple(s) => Expr::Tuple(Spanned::new(Tuple { items: all(&s.items)? }, s.span())),
        Expr::GetAttr(s) => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: target(&s.expr)?, name: s.name }, s.span()))
        }
        other => return Err(refused(format!("assignment to a {}", other.description()))),
    })
}

fn option<'s>(e: Option<&Expr<'s>>) -> Result<Option<Expr<'s>>> {
    e.map(expr).transpose()
}

fn exprs<'s>(items: &[Expr<'s>]) -> Result<Vec<Expr<'s>>> {
    items.iter().map(expr).collect()
}

fn expr<'s>(e: &Expr<'s>) -> Result<Expr<'s>> {
    Ok(match e {
        Expr::Var(s) => Expr::Var(Spanned::new(Var { id: s.id }, s.span())),
        Expr::Const(s) => constant(s.value.clone(), s.span()),
        Expr::Slice(s) => {
            let part = |e: Option<&Expr<'s>>| match e {
                Some(e) => expr(e),
                None => Ok(constant(Value::from(()), s.span())),
            };
            let parts =
                vec![expr(&s.expr)?, part(s.start.as_ref())?, part(s.stop.as_ref())?, part(s.step.as_ref())?];
            call("[:]", parts, s.span())
        }
        Expr::UnaryOp(s) => {
            let is_not = matches!(s.op, UnaryOpKind::Not);
            let op = if is_not { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            Expr::UnaryOp(Spanned::new(UnaryOp { op, expr: expr(&s.expr)? }, s.span()))
        }
        Expr::BinOp(s) => binary(s, s.span())?,
        Expr::Compare(s) => comparison(s, s.span())?,
        Expr::IfExpr(s) => {
            let e = IfExpr {
                test_expr: expr(&s.test_expr)?,
                true_expr: expr(&s.true_expr)?,
                false_expr: option(s.false_expr.as_ref())?,
            };
            Expr::IfExpr(Spanned::new(e, s.span()))
        }
        Expr::Filter(s) => {
            let filter = Filter { name: s.name, expr: option(s.expr.as_ref())?, args: args(&s.args)? };
            Expr::Filter(Spanned::new(filter, s.span()))
        }
        Expr::Test(s) => {
            let test = Test { name: s.name, expr: expr(&s.expr)?, args: args(&s.args)? };
            Expr::Test(Spanned::new(test, s.span()))
        }
        Expr::GetAttr(s) => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: expr(&s.expr)?, name: s.name }, s.span()))
        }
        Expr::GetItem(s) => {
            let item = GetItem { expr: expr(&s.expr)?, subscript_expr: expr(&s.subscript_expr)? };
            Expr::GetItem(Spanned::new(item, s.span()))
        }
        Expr::Call(s) => Expr::Call(Spanned::new(call_parts(s)?, s.span())),
        Expr::List(s) => call("[]", exprs(&s.items)?, s.span()),
        Expr::Tuple(s) => call("()", exprs(&s.items)?, s.span()),
        Expr::Map(s) => {
            let pairs = s.keys.iter().zip(&s.values).flat_map(|(k, v)| [k, v]);
            call("{}", pairs.map(expr).collect::<Result<_>>()?, s.span())
        }
    })
}

/// Arithmetic on numbers alone and the short-circuit operators stay; the rest become calls.
fn binary<'s>(s: &BinOp<'s>, span: Span) -> Result<Expr<'s>> {
    let (left, right) = (expr(&s.left)?, expr(&s.right)?);
    let name = match s.op {
        BinOpKind::Concat => "~",
        BinOpKind::Add => "+",
        BinOpKind::Mul => "*",
        BinOpKind::Eq => "==",
        BinOpKind::Ne => "!=",
        BinOpKind::Lt => "<",
        BinOpKind::Lte => "<=",
        BinOpKind::Gt => ">",
        BinOpKind::Gte => ">=",
        BinOpKind::In => "in",
        BinOpKind::ScAnd
        | BinOpKind::ScOr
        | BinOpKind::Sub
        | BinOpKind::Div
        | BinOpKind::FloorDiv
        | BinOpKind::Rem
        | BinOpKind::Pow => return Ok(Expr::BinOp(Spanned::new(BinOp { op: s.op, left, right }, span))),
    };
    Ok(call(name, vec![left, right], span))
}

/// `a < b < c` becomes one call with `a`, `<`, `b`, `<`, `c`.
fn comparison<'s>(s: &Compare<'s>, span: Span) -> Result<Expr<'s>> {
    let mut parts = vec![expr(&s.expr)?];
    for op in &s.ops {
        let name = match op.op {
            CompareOpKind::Eq => "==",
            CompareOpKind::Ne => "!=",
            CompareOpKind::Lt => "<",
            CompareOpKind::Lte => "<=",
            CompareOpKind::Gt => ">",
            CompareOpKind::Gte => ">=",
            CompareOpKind::In => "in",
            CompareOpKind::NotIn => "not in",
        };
        parts.push(constant(Value::from(name), span));
        parts.push(expr(&op.expr)?);
    }
    Ok(call("compare all", parts, span))
}

fn call_parts<'s>(s: &Call<'s>) -> Result<Call<'s>> {
    Ok(Call { expr: expr(&s.expr)?, args: args(&s.args)? })
}

fn args<'s>(args: &[CallArg<'s>]) -> Result<Vec<CallArg<'s>>> {
    args.iter()
        .map(|arg| match arg {
            CallArg::Pos(e) => expr(e).map(CallArg::Pos),
            CallArg::Kwarg(name, e) => Ok(CallArg::Kwarg(name, expr(e)?)),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => Err(refused("arguments with * or **")),
        })
        .collect()
}

fn constant<'s>(value: Value, span: Span) -> Expr<'s> {
    Expr::Const(Spanned::new(Const { value }, span))
}

fn call<'s>(name: &'static str, operands: Vec<Expr<'s>>, span: Span) -> Expr<'s> {
    let function = Expr::Var(Spanned::new(Var { id: name }, span));
    let args = operands.into_iter().map(CallArg::Pos).collect();
    Expr::Call(Spanned::new(Call { expr: function, args }, span))
}
