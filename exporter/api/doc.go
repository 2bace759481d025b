// Package api is the control interface: HTTP over a Unix socket, and the client
// that the command line uses. It is the only way to a running daemon's
// incidents, for the database is locked by the daemon.
//
// It must not decide anything: every call goes to a Backend. Access is the
// socket file's mode (0660, unix(7)). Nothing listens on a network, but for webhooks
// on loopback if it is asked for: they can freeze, with a token, and read nothing.
package api
