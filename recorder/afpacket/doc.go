// Package afpacket reads packet headers from the kernel's packet socket
// (packet(7), TPACKET_V3) and hands them to a sink with what the kernel knows of
// each: interface, direction, sender's link-layer address, VLAN tags, whether the
// checksum is known to be good. One goroutine reads one ring for each network
// namespace that is recorded.
//
// It must not keep packets or judge them. It does hold full blocks of the ring,
// unread but for the counting, while the sink orders that: then a packet costs
// next to nothing until somebody asks for it.
//
// It is the only package that uses cgo, and only because gopacket's afpacket takes
// its structures from C headers; with CGO_ENABLED=0 the socket is opened by hand
// and read the same way.
//
// gopacket opens the socket and the ring. The ring is then read by this package's
// own walker, for gopacket shows neither direction nor sender. The walker needs
// two private fields of gopacket's TPacket; where they are not as expected, Open
// fails and says so. There is no slower second way to read.
package afpacket
