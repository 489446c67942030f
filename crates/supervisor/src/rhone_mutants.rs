//! The binary `rhone` with one rule left out, for chaos to find (`make mutants`, decision 0051).

use std::process::ExitCode;

fn main() -> ExitCode {
    rhone::mutant::say();
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "guardian") {
        return rhone::guardian::main(args);
    }
    rhone::cli::main()
}
