// Package logs will read the journal and the log files of proxies around an
// incident. Until then every verdict says that this evidence is missing.
package logs
