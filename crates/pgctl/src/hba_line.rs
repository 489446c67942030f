//! ✦ Checks one line of `pg_hba.conf`: a line that the server does not take keeps it from starting.

/// The connection types.
const TYPES: [&str; 6] = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];

/// The methods of Postgres 13 to 18.
const METHODS: [&str; 15] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "ldap",
    "radius",
    "cert",
    "pam",
    "bsd",
    "oauth",
];

/// Says what is wrong with a line; nothing, where it is empty or a comment or the server would take it.
pub fn trouble(line: &str) -> Option<String> {
    let words = match words(line) {
        Ok(words) => words,
        Err(why) => return Some(why.to_owned()),
    };
    let mut words = words.iter().map(String::as_str);
    let kind = words.next()?;
    // PostgreSQL 16 and later read other files; what is in them is the server's to judge.
    if ["include", "include_if_exists", "include_dir"].contains(&kind) {
        return None;
    }
    if !TYPES.contains(&kind) {
        return Some(format!("begins with one of {}, not \"{kind}\"", TYPES.join(", ")));
    }
    let (Some(_database), Some(_user)) = (words.next(), words.next()) else {
        return Some("names a database and a user after its type".to_owned());
    };
    if kind != "local" {
        let Some(address) = words.next() else { return Some("names an address after the user".to_owned()) };
        if let Some(why) = bad_address(address) {
            return Some(why);
        }
        // An address without a prefix length may be followed by a mask.
        if address.parse::<std::net::IpAddr>().is_ok()
            && words.next().is_none_or(|mask| mask.parse::<std::net::IpAddr>().is_err())
        {
            return Some(format!("needs a prefix length, as in {address}/32"));
        }
    }
    let Some(method) = words.next() else {
        return Some("ends with a method, as in scram-sha-256".to_owned());
    };
    if !METHODS.contains(&method) {
        return Some(format!("has one of the methods {}, not \"{method}\"", METHODS.join(", ")));
    }
    let only_tcp = matches!(method, "cert" | "gss" | "sspi");
    if kind == "local" && only_tcp {
        return Some(format!("cannot use {method} on a local socket"));
    }
    if kind != "local" && method == "peer" {
        return Some("cannot use peer but on a local socket".to_owned());
    }
    words
        .find(|option| !option.contains('='))
        .map(|option| format!("has options as name=value after its method, not \"{option}\""))
}

fn bad_address(address: &str) -> Option<String> {
    if matches!(address, "all" | "samehost" | "samenet") || address.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    if let Some((host, length)) = address.split_once('/') {
        let limit = match host.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return Some(format!("has the address \"{address}\", which is none")),
        };
        let fits = length.parse::<u8>().is_ok_and(|length| length <= limit);
        return (!fits).then(|| format!("has the prefix length /{length}; it is 0 to {limit}"));
    }
    // A host's name, or a domain with a leading dot.
    let named = address.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_'))
        && address.chars().any(|char| char.is_ascii_alphabetic());
    (!named).then(|| format!("has the address \"{address}\", which is none"))
}

/// Splits a line as the server does: at blanks and after commas, quotes keep them.
pub(crate) fn words(line: &str) -> Result<Vec<String>, &'static str> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for char in line.chars() {
        match char {
            '"' => (quoted, begun) = (!quoted, true),
            '#' if !quoted => break,
            '\n' | '\r' | '\0' => return Err("must be one line"),
            // What follows a comma belongs to the same list.
            char if char.is_whitespace() && !quoted && word.ends_with(',') => {}
            char if char.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            char => {
                word.push(char);
                begun = true;
            }
        }
    }
    if quoted {
        return Err("has a quote that does not end");
    }
    if begun {
        words.push(word);
    }
    Ok(words)
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
        check("host all all 10.0.0.0/24 scram-sha-256", "");
        check("hostssl \"my db\", other +admins .example.org cert clientcert=verify-full # ours", "");
        check("local all postgres peer map=rhone", "");
        check("host all all 10.0.0.1 255.255.255.0 md5", "");
        check("host all all ::1/128 trust", "");
        check("", "");
        check("# nothing", "");
        check(
            "hots all all all trust",
            "begins with one of local, host, hostssl, hostnossl, hostgssenc, hostnogssenc, not \"hots\"",
        );
        check("host all", "names a database and a user after its type");
        check("host all all", "names an address after the user");
        check("host all all 10.0.0.0/33 trust", "has the prefix length /33; it is 0 to 32");
        check("host all all 10.0.0.1 trust", "needs a prefix length, as in 10.0.0.1/32");
        check("host all all 10.0.0.300/32 trust", "has the address \"10.0.0.300/32\", which is none");
        check("host all all all", "ends with a method, as in scram-sha-256");
        check(
            "host all all all scram map=x",
            "has one of the methods trust, reject, scram-sha-256, md5, password, gss, sspi, ident, peer, ldap, radius, cert, pam, bsd, oauth, not \"scram\"",
        );
        check("host all all all md5 now", "has options as name=value after its method, not \"now\"");
        check("host all all all peer", "cannot use peer but on a local socket");
        check("local all all gss", "cannot use gss on a local socket");
        check("host \"all", "has a quote that does not end");
    }
}
