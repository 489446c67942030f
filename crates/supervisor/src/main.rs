//! The `rhone` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    // Before anything else: the guardian is a process of one thread, without a runtime.
    if args.next().is_some_and(|command| command == "guardian") {
        return rhone::guardian::main(args);
    }
    rhone::cli::main()
}
