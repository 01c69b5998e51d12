//! `iperf3` on loopback: what one TCP stream carries on this machine now.

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Bytes a second of one stream, over `seconds`.
///
/// # Errors
/// When iperf3 is not installed or does not answer.
pub fn one_stream_bytes_per_s(seconds: u32) -> Result<f64> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let mut server = Command::new("iperf3")
        .args(["-s", "-1", "-B", "127.0.0.1", "-p", &port])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start iperf3: install it with `apt-get install iperf3`")?;
    let seconds = seconds.to_string();
    let mut answer = None;
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(50));
        let client = ["-c", "127.0.0.1", "-p", &port, "-P", "1", "-t", &seconds, "-J"];
        let output = Command::new("iperf3").args(client).output()?;
        if output.status.success() {
            answer = Some(output.stdout);
            break;
        }
    }
    // A server that had no client is still there.
    let _ = server.kill();
    let _ = server.wait();
    let json: serde_json::Value = serde_json::from_slice(&answer.context("iperf3 does not answer")?)?;
    let bits = json["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or(0.0);
    ensure!(bits > 0.0, "iperf3 reports no throughput");
    Ok(bits / 8.0)
}
