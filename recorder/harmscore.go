package recorder

import "tcpcoroner/evidence"

// ended is what is known of a connection at the moment of a reset. Index 0 is the
// client, 1 the server.
type ended struct {
	fromClient bool
	// known tells that something of the connection was seen before.
	known bool
	// duplicate: it had been reset before; ignored: its receiver ignores the segment.
	duplicate, ignored bool
	// opening tells that the server had not answered the SYN.
	opening bool
	// Of a refused connection: scanner tells that the client found many ports closed,
	// serving that the port had something to say in the last hour; tries counts the
	// attempts, this one included, of the client at this port in the last seconds;
	// fallback that the same port answered over IPv4 in the last seconds.
	scanner, serving, fallback bool
	tries                      uint32
	fin                        [2]bool
	// lastWords is how much the end that closed first said right before, up to
	// farewell; 0 if nothing.
	lastWords uint32
	// goodbyes tells that both ends said as much as an alert of TLS, just now.
	goodbyes bool
	// bytes of payload that each end sent, -1 if not known.
	bytes [2]int64
	// lost is the payload of each end that the other did not acknowledge.
	lost [2]uint32
	// unheard is the payload of the receiver of the reset that the other end had not
	// acknowledged when it last said anything else: it came in with the reset, if at all.
	unheard uint32
	// pending tells that an end's last segment carried payload, pushed that its
	// last data did with PSH: the end of what it had to say.
	pending, pushed [2]bool
	// age is since the SYN, idle since the last segment, in milliseconds.
	age, idle uint32
}

const (
	// healthCheck is how long a health check takes at most, idleClose how long
	// nothing happens before a reset is no surprise, both in milliseconds.
	healthCheck = 100
	idleClose   = 5000
	// farewell is how much may follow the other end's FIN without harm: TLS says
	// close_notify (RFC 8446, 6.1), which fits into it.
	farewell = 64
	// An encrypted alert has from leastAlert bytes (RFC 7905) over 24 (RFC 8446, 5.2) to
	// mostAlert (RFC 5288) in the usual suites.
	leastAlert = 23
	mostAlert  = 31
	// farewellTime is the time between those words and the FIN, in milliseconds.
	farewellTime = 100
	// goodbyeTime is how long a server takes at most to close after its farewell, in
	// milliseconds: on a busy host other threads run first.
	goodbyeTime = 400
	// refusedTries is the attempt from which a refused connection is no start-up.
	refusedTries = 3
)

// The scores. At harmfulScore somebody missed something.
const (
	harmfulScore   = 50
	scoreCertain   = 60 // a harm that cannot be otherwise
	scoreLikely    = 50
	scoreLongLive  = 10 // the connection had been in use for over a second
	scoreNoAnswer  = 15 // and nothing was answered
	scoreStray     = 20
	scoreStartup   = 30
	scoreAbandoned = 40
	scoreBenign    = 0
)

// judge tells the kind of harm, and its score from 0 to 100.
func (r *ended) judge() (evidence.HarmKind, uint8) {
	switch {
	case r.duplicate:
		return evidence.HarmDuplicate, scoreBenign
	case r.ignored:
		return evidence.HarmIgnored, scoreBenign
	case !r.known:
		return evidence.HarmStray, scoreStray
	case r.opening && !r.fromClient:
		return r.refused()
	case r.opening || r.bytes[0] == 0 && r.bytes[1] <= 0 && r.lost == [2]uint32{}:
		return r.unused()
	}
	return r.used()
}

// refused is a RST that answers a SYN.
func (r *ended) refused() (evidence.HarmKind, uint8) {
	switch {
	case r.serving:
		return evidence.HarmRefusedServing, scoreCertain
	case r.scanner:
		return evidence.HarmScan, scoreBenign
	case r.tries >= refusedTries && !r.fallback:
		return evidence.HarmRefused, scoreLikely
	}
	return evidence.HarmStartup, scoreStartup
}

// unused is a connection without a byte of payload.
func (r *ended) unused() (evidence.HarmKind, uint8) {
	switch {
	case r.fin[0] || r.fin[1]:
		return evidence.HarmAfterFIN, scoreBenign
	case r.fromClient && r.age < healthCheck:
		return evidence.HarmHealthCheck, scoreBenign
	case r.fromClient:
		return evidence.HarmPreconnect, scoreBenign
	case r.idle >= idleClose:
		return evidence.HarmIdleClose, scoreBenign
	}
	return evidence.HarmRefusedServing, scoreCertain // accepted, and thrown out at once
}

func (r *ended) used() (evidence.HarmKind, uint8) {
	waiting := r.bytes[0] != 0 && (r.bytes[1] == 0 || r.pending[0])
	switch {
	case r.late(), r.goodbyes && !r.fromClient && r.lost == [2]uint32{}:
		return evidence.HarmAfterFIN, scoreBenign
	case r.lost != [2]uint32{}:
		return evidence.HarmDataLost, r.score(scoreCertain, waiting)
	case r.turnedAway():
		return evidence.HarmUnanswered, r.score(scoreLikely, true)
	case r.fin[0] || r.fin[1]:
		return evidence.HarmAfterFIN, scoreBenign
	case waiting:
		return evidence.HarmUnanswered, r.score(scoreLikely, true)
	case r.idle >= idleClose:
		return evidence.HarmIdleClose, scoreBenign
	case r.fromClient && r.pushed[1]:
		return evidence.HarmAbortAfterResponse, scoreBenign
	}
	return evidence.HarmMidstream, r.score(scoreLikely, false)
}

// late tells that what came after a FIN of the end that resets is a farewell: of
// an end that closes too, of a server whose client is done, or as long as the words
// that the end itself closed with, as both of TLS are.
func (r *ended) late() bool {
	me, peer := 1, 0
	if r.fromClient {
		me, peer = 0, 1
	}
	return r.fin[me] && r.lost[me] == 0 && r.lost[peer] > 0 && r.lost[peer] <= farewell && (r.fin[peer] || r.fromClient || r.lost[peer] == r.lastWords)
}

// left tells that the client went away, with all that it had said confirmed.
func (r *ended) left() bool { return r.fromClient && r.lost[0] == 0 }

// turnedAway tells that the server answered in the middle of what the client had to
// say, and did not read the rest: the reset confirms data that nothing was said of
// (RFC 9112, section 9.6). That the client is done changes nothing. Or it closed
// without a word to a client that was not done.
func (r *ended) turnedAway() bool {
	silent := r.fin[1] && !r.fin[0] && r.bytes[0] > 0 && r.bytes[1] == 0
	return !r.fromClient && (silent || r.fin[0] && !r.fin[1] && r.unheard > farewell)
}

func (r *ended) score(n uint8, waiting bool) uint8 {
	if r.age > 1000 {
		n += scoreLongLive
	}
	if waiting {
		n += scoreNoAnswer
	}
	return n
}
