//! ✦ Checks one line of `pg_ident.conf`: with one that the server does not take it has no maps at all, Rhone's
//! neither.

use crate::hba_line::words;

/// The name of Rhone's own map.
pub const OWN_MAP: &str = "rhone";

/// Says what is wrong with a line; nothing, where it is empty or a comment or the server would take it.
///
/// A regular expression (a system user that begins with `/`) is refused also where it has more in it than groups, sets,
/// `.`, `*`, `+`, `?`, `|`, `^`, `$` and escapes: what the server makes of the rest is not known here.
pub fn trouble(line: &str) -> Option<String> {
    let words = match words(line) {
        Ok(words) => words,
        Err(why) => return Some(why.to_owned()),
    };
    let [map, system, role, more @ ..] = words.as_slice() else {
        return (!words.is_empty()).then(|| "has a map, a system user and a role".to_owned());
    };
    if map == OWN_MAP {
        return Some(format!("is of the map \"{OWN_MAP}\", which is rhone's own"));
    }
    if let Some(more) = more.first() {
        return Some(format!("ends with the role, not with \"{more}\""));
    }
    let expression = system.strip_prefix('/')?;
    match groups(expression) {
        Err(why) => Some(format!("has a regular expression {why}")),
        Ok(0) if role.contains("\\1") => {
            Some("has \\1 in its role, and no group in its regular expression".to_owned())
        }
        Ok(_) => None,
    }
}

/// Counts an expression's groups.
fn groups(expression: &str) -> Result<usize, &'static str> {
    let (mut open, mut groups, mut begun) = (0_usize, 0_usize, false);
    let mut chars = expression.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('d' | 's' | 'w' | 'D' | 'S' | 'W') => begun = true,
                Some(escaped) if !escaped.is_alphanumeric() => begun = true,
                Some(_) => return Err("with an escape that is not known here"),
                None => return Err("that ends with a backslash"),
            },
            '[' => {
                set(&mut chars)?;
                begun = true;
            }
            '(' if chars.peek() == Some(&'?') => return Err("with a group that is not known here"),
            '(' => (open, groups, begun) = (open + 1, groups + 1, false),
            ')' => {
                open = open.checked_sub(1).ok_or("with a parenthesis that nothing opened")?;
                begun = true;
            }
            '{' | '}' => return Err("with braces, which are not known here"),
            '*' | '+' | '?' if !begun => return Err("that repeats nothing"),
            // Twice in a row is refused by the server, but for `*?` and the like.
            '*' | '+' | '?' => {
                if chars.peek() == Some(&'?') {
                    chars.next();
                }
                begun = false;
            }
            '|' | '^' => begun = false,
            _ => begun = true,
        }
    }
    if open > 0 { Err("with a parenthesis that nothing closes") } else { Ok(groups) }
}

/// Passes over a set, up to its end.
fn set(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<(), &'static str> {
    let simple =
        "with a set that is not known here: letters, digits, `.`, `_`, `@`, and ranges of letters or digits";
    if chars.peek() == Some(&'^') {
        chars.next();
    }
    let (mut last, mut any) = (None::<char>, false);
    while let Some(char) = chars.next() {
        match char {
            ']' if any => return Ok(()),
            '-' => {
                let (from, to) = (last.take().ok_or(simple)?, chars.next().ok_or(simple)?);
                let alike = [char::is_ascii_lowercase, char::is_ascii_uppercase, char::is_ascii_digit];
                if !alike.iter().any(|kind| kind(&from) && kind(&to)) || from > to {
                    return Err(simple);
                }
            }
            char if char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '@') => last = Some(char),
            _ => return Err(simple),
        }
        any = true;
    }
    Err("with a set that nothing closes")
}

#[cfg(test)]
mod tests {
    use super::trouble;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        assert_eq!(trouble(line).unwrap_or_default(), expected, "{line}");
    }

    #[test]
    fn a_line_is_what_the_server_takes() {
        check("", "");
        check("# nothing", "");
        check("office ann \"Ann Lee\" # ours", "");
        check(r"krb /^(.*)@example\.com$ \1", "");
        check(r#"krb "/^([a-z0-9_.]+)@(A|B)\.example$" \1"#, "");
        check("office ann", "has a map, a system user and a role");
        check("office ann app more", "ends with the role, not with \"more\"");
        check("rhone ann postgres", "is of the map \"rhone\", which is rhone's own");
        check("office \"ann app", "has a quote that does not end");
        check("office a\nb c", "must be one line");
    }

    #[test]
    fn an_expression_that_the_server_may_not_take_is_refused() {
        check(r"krb /^(.*@x$ \1", "has a regular expression with a parenthesis that nothing closes");
        check(r"krb /.*)@x$ y", "has a regular expression with a parenthesis that nothing opened");
        check(r"krb /^.*@x$ \1", "has \\1 in its role, and no group in its regular expression");
        check("krb /a\\ y", "has a regular expression that ends with a backslash");
        check("krb /a{2,1} y", "has a regular expression with braces, which are not known here");
        check("krb /*a y", "has a regular expression that repeats nothing");
        check("krb /a** y", "has a regular expression that repeats nothing");
        check("krb /(?z)a y", "has a regular expression with a group that is not known here");
        check("krb /[a y", "has a regular expression with a set that nothing closes");
        let simple = "has a regular expression with a set that is not known here: letters, digits, `.`, `_`, `@`, and ranges of letters or digits";
        check("krb /[z-a] y", simple);
        check("krb /[[:nothing:]] y", simple);
    }
}
