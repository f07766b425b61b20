/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_WIRE_H
#define MOAT_WIRE_H 1

/* The protocol between two agents, as bytes.  Pure: no I/O, no clock.
 *
 * A frame is a 12-byte head and a body, all in network byte order:
 *
 *   offset size
 *      0    4  magic "MOAT"
 *      4    2  version (MOAT_WIRE_VERSION)
 *      6    2  type (enum wire_type)
 *      8    4  length of the body, at most MOAT_WIRE_MAX
 *
 * Strings are a 16-bit length and bytes without NUL.  A body must be used up
 * exactly: trailing bytes are an error.  B is the destination, A the source.
 *
 *   B -> A  REQUEST     I want this vNIC; who I am; flags
 *   A -> B  REFUSE      no, and why; the connection is of no more use
 *   A -> B  POLICY      identity, settings and ruleset of the vNIC
 *   B -> A  START       a QEMU is connected here: send the sessions
 *   B -> A  STOP        it went away: never mind
 *   A -> B  SESSIONS    session records (moat/session.h), framed
 *   A -> B  ROUND       end of a round
 *   A -> B  FENCED      the source no longer passes a packet of it
 *   A -> B  FINAL       that was all; counts; the epoch that B now holds
 *   B -> A  FINAL_ACK   taken: what was accepted and refused
 *   A -> B  DONE        the source let its QEMU go; how long that waited
 *   B -> A  STARTED     the VM's rings have started here
 *   B -> A  OPENED      the vNIC passes traffic here
 *   A -> B  TAKE_BACK   the VM resumed at the source
 *   B -> A  TAKEN_BACK  forgotten here (ok 1), or too late (ok 0)
 *   A -> B  CANCEL      the move ended without a switch-over
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

#define MOAT_WIRE_VERSION 2
#define MOAT_WIRE_MAGIC 0x4d4f4154u
#define MOAT_WIRE_HEAD 12
#define MOAT_WIRE_MAX (320u << 10)
#define MOAT_WIRE_TEXT 256 /* reasons: with the NUL */

enum wire_type {
    WIRE_REQUEST = 1,
    WIRE_REFUSE = 2,
    WIRE_POLICY = 3,
    WIRE_START = 4,
    WIRE_STOP = 5,
    WIRE_SESSIONS = 6,
    WIRE_ROUND = 7,
    WIRE_FENCED = 8,
    WIRE_FINAL = 9,
    WIRE_FINAL_ACK = 10,
    WIRE_DONE = 11,
    WIRE_STARTED = 12,
    WIRE_OPENED = 13,
    WIRE_TAKE_BACK = 14,
    WIRE_TAKEN_BACK = 15,
    WIRE_CANCEL = 16,
    WIRE_N_TYPES
};

#define WIRE_REQ_COMMITTED 0x01 /* B has the final delta of this epoch already */
#define WIRE_REQ_RUNNING 0x02   /* the VM's rings have started at B */

#define WIRE_FINAL_NO_SESSIONS 0x01 /* transfer_sessions is off: none were sent */

/* One frame, decoded.  Which fields count depends on the type; pointers point
 * into the buffer that was decoded. */
struct wire {
    uint16_t type;
    uint16_t flags;         /* REQUEST, FINAL; REFUSE: enum mig_refuse */
    bool ok;                /* TAKEN_BACK */
    char vnic[MOAT_ID_MAX]; /* REQUEST */
    char host[MOAT_ID_MAX]; /* REQUEST */
    char text[MOAT_WIRE_TEXT]; /* REFUSE, CANCEL, TAKEN_BACK */
    uint64_t epoch;         /* REQUEST, FENCED, FINAL, FINAL_ACK, OPENED, TAKE_BACK, TAKEN_BACK */
    uint32_t round;         /* SESSIONS, ROUND, FINAL: rounds */
    uint64_t records;       /* ROUND, FINAL: sent since POLICY */
    uint64_t final_records; /* FINAL: sent since the freeze */
    uint64_t final_bytes;   /* FINAL */
    uint64_t live;          /* FINAL: live sessions of the source's slot */
    uint64_t accepted, refused; /* FINAL_ACK */
    uint64_t wait_us;       /* DONE */
    struct moat_slot_conf conf; /* POLICY; no path, no state */
    uint32_t enroll_left_s; /* POLICY: seconds that its enrolment would go on; 0: none */
    uint64_t generation;    /* POLICY */
    uint8_t digest[16];     /* POLICY */
    uint32_t n;             /* SESSIONS: records */
    const uint8_t *blob;    /* POLICY: ruleset, may be empty; SESSIONS: frames */
    size_t blob_len;
};

const char *wire_type_name(unsigned type);

/* Encodes *w.  Returns the frame's length, or 0 if it does not fit `size` or a
 * field is out of range. */
size_t wire_encode(const struct wire *w, uint8_t *out, size_t size);

/* Looks at the first n bytes of a stream.  Returns the length of the whole first
 * frame, 0 if more bytes are needed to tell, or -EPROTO with a reason. */
long wire_frame_len(const uint8_t *in, size_t n, const char **why);

/* Decodes one whole frame of n bytes.  0, or -EPROTO with a reason: the
 * connection must then be closed. */
int wire_decode(const uint8_t *in, size_t n, struct wire *w, const char **why);

#endif /* wire.h */
