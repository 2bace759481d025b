// Package logs reads what the journal, the kernel and the log files of proxies say
// about a moment, and what a line means: which party, in which phase, for which
// reason, under which request and trace.
//
// It reads and never writes, and does not judge: a log line is a hint, written in
// part by the client. Every text that it hands out went through Redact. Time, bytes
// and lines are bounded for each source; what was left out is told as Missing.
package logs
