/* SPDX-License-Identifier: Apache-2.0 */

/* TCP tracking: conversations written as tables. */

#include "tcp_observer.h"

#include <string.h>

/* Rows leave out what is zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define FIN MOAT_TCP_FIN
#define SYN MOAT_TCP_SYN
#define RST MOAT_TCP_RST
#define ACK MOAT_TCP_ACK

#define PASS MOAT_R_NONE
#define WINDOW MOAT_R_TCP_WINDOW
#define STATE MOAT_R_TCP_STATE
#define NO_SES MOAT_R_TCP_NO_SESSION
#define UNBEL MOAT_TCP_UNBELIEVED /* passes, without effect */
#define LAST_ROW 255

enum { A = 0, B = 1 };
enum { STRICT = 0, LOOSE = 1 };
enum {
    N = MOAT_TCPS_NONE,
    S = MOAT_TCPS_SYN_SENT,
    E = MOAT_TCPS_ESTABLISHED,
    C = MOAT_TCPS_CLOSING,
    D = MOAT_TCPS_FIN_ACKED,
    R = MOAT_TCPS_RESET
};

/* One segment.  seq counts from the sender's initial sequence number, ack from the
 * peer's: a SYN is 0, the first byte is 1. */
struct row {
    uint8_t dir, flags;
    uint32_t seq, ack, len;
    uint16_t win;
    uint8_t expect;
    char state[3];  /* of A and B afterwards; "": not looked at */
    uint8_t wscale; /* of a SYN */
    bool lenient;
};

struct conversation {
    const char *name;
    uint8_t loose;
    uint8_t timer; /* at the end */
    const struct row *rows;
    uint8_t vm; /* which end is the VM; 0: either */
};

enum { VM_A = 1, VM_B = 2 };

#define ROWS (const struct row[])
#define END                                                                                        \
    {                                                                                              \
        .expect = LAST_ROW                                                                         \
    }
#define W(SHIFT) .wscale = (SHIFT) | 0x80
#define LENIENT .lenient = true

/* clang-format off */
/* Both windows are 1000 after it. */
#define HANDSHAKE                                                                                  \
    {A, SYN, 0, 0, 0, 1000, PASS, "SN"}, {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"},                \
    {A, ACK, 1, 1, 0, 1000, PASS, "EE"}
/* The same with windows of 100 << 7 and 1000 << 3. */
#define SCALED                                                                                     \
    {A, SYN, 0, 0, 0, 1000, PASS, "SN", W(7)}, {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES", W(3)},    \
    {A, ACK, 1, 1, 0, 100, PASS, "EE"}
/* A has sent 100 bytes, B 200; all of it was acknowledged. */
#define DATA                                                                                       \
    {A, ACK, 1, 1, 100, 1000, PASS, "EE"}, {B, ACK, 1, 101, 200, 1000, PASS, "EE"},                \
    {A, ACK, 101, 201, 0, 1000, PASS, "EE"}
#define CLOSE                                                                                      \
    {A, FIN | ACK, 101, 201, 0, 1000, PASS, "CE"}, {B, ACK, 201, 102, 0, 1000, PASS, "DE"},        \
    {B, FIN | ACK, 201, 102, 0, 1000, PASS, "DC"}, {A, ACK, 102, 202, 0, 1000, PASS, "DD"}
/* clang-format on */

static const struct conversation conversations[] = {
    {"SYN", STRICT, MOAT_T_TCP_FIRST, ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "SN"}, END}},
    {"half open", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS}, {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"}, END}},
    {"handshake and data", STRICT, MOAT_T_TCP_ESTABLISHED, ROWS{HANDSHAKE, DATA, END}},
    {"data completes the handshake", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS},
          {A, ACK, 1, 1, 100, 1000, PASS, "EE"},
          {A, ACK, 1, 1, 0, 1000, PASS, "EE"},
          END}},
    {"no session without a SYN", STRICT, 0,
     ROWS{{A, ACK, 1, 1, 10, 1000, NO_SES},
          {A, SYN | ACK, 0, 1, 0, 1000, NO_SES},
          {A, RST, 1, 0, 0, 0, NO_SES},
          {A, FIN | ACK, 1, 1, 0, 1000, NO_SES},
          END}},
    {"wrong SYN|ACK", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 2, 0, 1000, WINDOW, "SN"},
          {B, SYN | ACK, 0, 0, 0, 1000, WINDOW},
          {B, SYN | ACK, 0, -60000u, 0, 1000, WINDOW},
          {B, SYN | ACK, 0, 1u << 31, 0, 1000, WINDOW},
          {B, ACK, 1, 1, 1, 1000, STATE},
          {B, FIN | ACK, 1, 1, 0, 1000, STATE},
          {A, ACK, 1, 1, 0, 1000, STATE, "SN"},
          {A, SYN | ACK, 0, 1, 0, 1000, STATE},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"},
          END}},
    {"SYN again", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {A, SYN, 0, 0, 0, 1000, PASS},
          {A, SYN, 5000, 0, 0, 1000, PASS, "SN"},
          {B, SYN | ACK, 0, 1, 0, 1000, WINDOW},
          {B, SYN | ACK, 0, 5001, 0, 1000, PASS},
          {A, SYN, 5000, 0, 0, 1000, PASS, "ES"},
          {A, SYN, 6000, 0, 0, 1000, UNBEL, "ES"},
          {B, SYN | ACK, 0, 5001, 0, 1000, PASS},
          {A, ACK, 5001, 1, 0, 1000, PASS, "EE"},
          {B, SYN | ACK, 0, 5001, 0, 1000, PASS, "EE"},
          {B, SYN | ACK, 7, 5001, 0, 1000, STATE, "EE"},
          {B, SYN | ACK, 2000, 5001, 0, 1000, WINDOW},
          {B, SYN | ACK, 7, 5002, 0, 1000, WINDOW},
          {A, ACK, 5001, 1, 0, 1000, PASS, "EE"},
          END}},
    {"SYN|ACK with another number: the last one counts", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "", W(7)},
          {B, SYN | ACK, 0, 1, 0, 500, PASS, "ES", W(3)},
          {A, SYN, 0, 0, 0, 1000, PASS, "ES", W(7)},
          {B, SYN | ACK, 100000, 0, 0, 1000, WINDOW, "ES", W(3)},
          {B, SYN | ACK, 100000, 2, 0, 1000, WINDOW, "ES", W(3)},
          {B, SYN | ACK, 100000, 1, 0, 1000, PASS, "ES"},
          {A, ACK, 1, 1, 0, 1000, WINDOW, "ES"},
          {A, ACK, 1, 100001, 0, 1000, PASS, "EE"},
          {B, ACK, 100001, 1, 1025, 1000, WINDOW}, /* now without scale */
          {B, ACK, 100001, 1, 1024, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 500, WINDOW, "EE"},
          END},
     VM_A},
    {"SYN|ACK again behind early data", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 100, 1000, PASS},
          {B, SYN | ACK, 0, 101, 0, 1000, PASS, "ES"},
          {B, ACK, 1, 101, 500, 1000, PASS, "ES"},
          {B, SYN | ACK, 0, 101, 0, 1000, PASS, "ES"},
          {A, ACK, 101, 501, 0, 1000, PASS, "EE"},
          {B, SYN | ACK, 0, 101, 0, 1000, UNBEL, "EE"},
          END}},
    {"SYN with data", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 500, 1000, PASS},
          {B, SYN | ACK, 0, 0, 0, 1000, WINDOW},
          {B, SYN | ACK, 0, 502, 0, 1000, WINDOW},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"},
          {B, SYN | ACK, 0, 501, 0, 1000, PASS, "ES"},
          {B, ACK, 1, 501, 1000, 1000, PASS, "ES"},
          END}},
    {"SYN again without its data", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 500, 1000, PASS},
          {A, SYN, 0, 0, 0, 1000, PASS, "SN"},
          {B, SYN | ACK, 0, 502, 0, 1000, WINDOW, "SN"},
          {B, SYN | ACK, 0, 501, 0, 1000, PASS, "ES"},
          {A, SYN, 0, 0, 0, 1000, UNBEL, "ES"},
          END}},
    {"SYN with data, refused", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{{A, SYN, 0, 0, 500, 1000, PASS},
          {B, RST | ACK, 0, 502, 0, 0, WINDOW},
          {B, RST | ACK, 0, 0, 0, 0, WINDOW, "SN"},
          {B, RST | ACK, 0, 501, 0, 0, PASS, "RR"},
          END}},
    {"SYN with data, refused but for its data", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{{A, SYN, 0, 0, 500, 1000, PASS}, {B, RST | ACK, 0, 1, 0, 0, PASS, "RR"}, END}},
    {"half open: the called end knows an older connection", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {A, RST, 70000, 0, 0, 0, WINDOW},
          {B, ACK, 5000, 70000, 0, 1000, UNBEL, "SN"},
          {B, ACK, 5000, 70000, 1, 1000, STATE},
          {B, FIN | ACK, 5000, 70000, 0, 1000, STATE},
          {B, 0, 5000, 70000, 0, 1000, STATE},
          {A, RST, 70001, 0, 0, 0, WINDOW},
          {A, RST, 69999, 0, 0, 0, WINDOW, "SN"},
          {A, RST, 70000, 0, 0, 0, UNBEL, "SN"},
          HANDSHAKE,
          DATA,
          END}},
    {"half open, the SYN comes again meanwhile", STRICT, MOAT_T_TCP_FIRST,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, ACK, 5000, 70000, 0, 1000, UNBEL},
          {A, SYN, 0, 0, 0, 1000, PASS, "SN"},
          {A, RST, 70000, 0, 0, 0, UNBEL, "SN"},
          {A, SYN, 9, 0, 0, 1000, PASS, "SN"},
          {A, RST, 70000, 0, 0, 0, WINDOW, "SN"},
          END}},
    {"SYN with more data than fits", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 750, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 500, PASS, "ES"},
          {A, ACK, 1, 1, 0, 1000, PASS, "EE"},
          {A, ACK, 1, 1, 500, 1000, PASS},
          {A, ACK, 501, 1, 251, 1000, WINDOW},
          END}},
    {"SYN with more data than fits, reset", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 750, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 500, PASS, "ES"},
          {A, RST | ACK, 1, 1, 0, 0, UNBEL, "ES"},
          END}},
    {"SYN|ACK again with a wider window", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 100, PASS, "ES"},
          {B, SYN | ACK, 0, 1, 0, 50, PASS, "ES"},
          {A, ACK, 1, 1, 101, 1000, WINDOW, "ES"},
          {B, SYN | ACK, 0, 1, 0, 200, PASS, "ES"},
          {A, ACK, 1, 1, 201, 1000, WINDOW, "ES"},
          {A, ACK, 1, 1, 200, 1000, PASS, "EE"},
          END}},
    {"SYN|ACK with another number within the window", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"},
          {B, SYN | ACK, 100, 1, 0, 1000, PASS, "ES"},
          {A, ACK, 1, 101, 0, 1000, PASS, "EE"},
          END}},
    {"SYN again with more of everything", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "", W(2)},
          {A, SYN, 0, 0, 100, 2000, PASS, "SN", W(7)},
          {A, SYN, 0, 0, 0, 500, PASS, "SN"},
          {B, SYN | ACK, 0, 101, 0, 1000, PASS, "ES", W(1)},
          {B, ACK, 1, 101, 2001, 1000, WINDOW, "ES"},
          {B, ACK, 1, 101, 2000, 1000, PASS, "ES"},
          {A, ACK, 101, 2001, 0, 10, PASS, "EE"},
          {B, ACK, 2001, 101, 1281, 1000, WINDOW},
          {B, ACK, 2001, 101, 1280, 1000, PASS},
          END}},
    {"SYN|ACK with another number, with the widest window", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 0, 65535, PASS, "", W(7)},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES", W(1)},
          {B, SYN | ACK, 100000, 1, 0, 1000, PASS, "ES"},
          {B, ACK, 100001, 1, 65536, 1000, WINDOW, "ES"},
          {B, ACK, 100001, 1, 65535, 1000, PASS, "ES"},
          END},
     VM_A},
    {"a FIN before the handshake is over needs room", STRICT, MOAT_T_TCP_CLOSING,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"},
          {B, FIN | ACK, 1, 1, 1000, 1000, WINDOW, "ES"},
          {B, FIN | ACK, 1, 1, 999, 1000, PASS, "EC"},
          END}},
    {"simultaneous open", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "SN"},
          {B, SYN, 0, 0, 0, 1000, PASS, "SS"},
          {A, SYN | ACK, 0, 2, 0, 1000, WINDOW, "SS"},
          {A, ACK, 1, 1, 0, 1000, STATE, "SS"},
          {B, ACK, 1, 1, 10, 1000, STATE, "SS"},
          {B, FIN | ACK, 1, 1, 0, 1000, STATE, "SS"},
          {A, SYN | ACK, 0, 1, 0, 1000, PASS, "SE"},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "EE"},
          DATA,
          END}},
    {"simultaneous open, with repetitions", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "SN"},
          {B, SYN, 0, 0, 0, 1000, PASS, "SS"},
          {A, SYN, 0, 0, 0, 1000, PASS, "SS"},
          {B, SYN, 0, 0, 0, 1000, PASS, "SS"},
          {B, SYN, 9, 0, 0, 1000, STATE, "SS"},
          {A, SYN, 9, 0, 0, 1000, UNBEL, "SS"},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "ES"},
          {B, SYN, 0, 0, 0, 1000, STATE, "ES"}, /* late: its SYN|ACK was here */
          {A, SYN, 0, 0, 0, 1000, PASS, "ES"},
          {A, ACK, 1, 1, 0, 1000, PASS, "EE"},
          DATA,
          {B, SYN, 0, 0, 0, 1000, STATE, "EE"},
          END}},
    {"refused", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, RST, 0, 1, 0, 0, WINDOW},
          {B, RST | ACK, 0, 2, 0, 0, WINDOW},
          {B, RST | ACK, 0, 0, 0, 0, WINDOW, "SN"},
          {B, RST | ACK, 0, 1, 0, 0, PASS, "RR"},
          {B, RST | ACK, 0, 1, 0, 0, WINDOW},
          {B, SYN | ACK, 0, 1, 0, 1000, STATE},
          {B, ACK, 1, 1, 10, 1000, WINDOW},
          {A, ACK, 1, 1, 0, 1000, WINDOW, "RR"},
          END}},
    {"given up", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {A, RST, 2, 0, 0, 0, WINDOW, "SN"},
          {A, RST | ACK, 1, 12345, 0, 0, WINDOW, "SN"},
          {A, RST, 1, 0, 0, 0, PASS, "RR"},
          {B, SYN | ACK, 0, 1, 0, 1000, STATE, "RR"}, /* nobody wants it any more */
          {B, RST | ACK, 0, 1, 0, 1000, WINDOW, "RR"},
          {A, RST, 1u << 31, 0, 100, 0, WINDOW, "RR"},
          END}},
    {"SYN|ACK refused by its addressee", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS},
          {B, RST, 2, 0, 0, 0, WINDOW, "ES"}, /* no window was offered to B yet */
          {B, RST, 1000, 0, 0, 0, WINDOW, "ES"},
          {A, RST, 1, 0, 0, 0, PASS, "RR"},
          END}},

    {"beyond the window", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          {A, ACK, 1, 1, 1001, 1000, WINDOW},
          {A, ACK, 1002, 1, 0, 1000, WINDOW},
          {A, ACK, 2000, 1, 10, 1000, WINDOW},
          {A, ACK, 1u << 31, 1, 10, 1000, WINDOW},
          {A, ACK, 1, 1, 1000, 1000, PASS},
          {A, ACK, 1001, 1, 1, 1000, WINDOW},
          {B, ACK, 1, 501, 0, 1000, PASS},
          {A, ACK, 1001, 1, 500, 1000, PASS},
          END}},
    {"a hole left by loss or reordering", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          {A, ACK, 501, 1, 100, 1000, PASS},
          {A, ACK, 1, 1, 500, 1000, PASS},
          {B, ACK, 1, 601, 0, 1000, PASS},
          END}},
    {"retransmissions", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          {A, ACK, 1, 1, 1000, 1000, PASS},
          {A, ACK, 1, 1, 1000, 1000, PASS},
          {B, ACK, 1, 1001, 0, 1000, PASS},
          {A, ACK, 1001, 1, 1000, 1000, PASS},
          {A, ACK, 1001, 1, 10, 1000, PASS},
          {A, ACK, 501, 1, 1000, 1000, PASS},
          {A, ACK, 991, 1, 10, 1000, PASS},
          {A, ACK, 990, 1, 10, 1000, WINDOW},
          {A, ACK, 1, 1, 999, 1000, WINDOW},
          END}},
    {"scaled windows", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{SCALED,
          {B, ACK, 1, 1, 12801, 1000, WINDOW},
          {B, ACK, 1, 1, 12800, 1000, PASS},
          {A, ACK, 1, 1, 8001, 100, WINDOW},
          {A, ACK, 1, 12801, 8000, 100, PASS},
          {B, ACK, 12801, 8001, 12800, 1000, PASS},
          END}},
    {"a SYN's own window is not scaled", STRICT, MOAT_T_TCP_OPENING,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "", W(7)},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "", W(7)},
          {B, ACK, 1, 1, 1001, 1000, WINDOW},
          {A, ACK, 1, 1, 1001, 1000, WINDOW, "ES"},
          END}},
    {"nor is it for retransmissions", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 65535, PASS, "", W(14)},
          {B, SYN | ACK, 0, 1, 0, 65535, PASS, "", W(14)},
          {A, ACK, 1, 1, 0, 4, PASS},
          {B, ACK, 1, 1, 0, 4, PASS},
          {A, ACK, 1, 1, 60000, 4, PASS},
          {A, ACK, 1, 1, 60000, 4, PASS},
          {A, ACK, -10000u, 1, 10, 4, WINDOW, "EE"},
          END}},
    {"one end scales: none does", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS, "", W(7)},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS},
          {A, ACK, 1, 1, 0, 1000, PASS},
          {B, ACK, 1, 1, 1001, 1000, WINDOW},
          {B, ACK, 1, 1, 1000, 1000, PASS, "EE"},
          END}},
    {"only the answer scales: none does", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 1000, PASS, "", W(7)},
          {A, ACK, 1, 1, 0, 1000, PASS},
          {B, ACK, 1, 1, 0, 1000, PASS},
          {A, ACK, 1, 1, 1001, 1000, WINDOW},
          {A, ACK, 1, 1, 1000, 1000, PASS, "EE"},
          END}},
    {"acknowledgements", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {B, ACK, 201, 102, 0, 1000, WINDOW},
          {B, ACK, 201, 102, 50, 1000, WINDOW},
          {B, ACK, 201, 1u << 31, 0, 1000, WINDOW},
          {B, ACK, 201, 51, 0, 1000, PASS},
          {B, ACK, 201, -65000u, 0, 1000, PASS},
          {B, ACK, 201, -67000u, 0, 1000, WINDOW},
          {B, 0, 201, 101, 10, 1000, STATE},
          END}},
    {"keepalive", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, ACK, 100, 201, 0, 1000, PASS},
          {B, ACK, 201, 101, 0, 1000, PASS},
          {A, ACK, 100, 201, 1, 1000, PASS},
          {B, ACK, 200, 101, 0, 1000, PASS, "EE"},
          END}},
    {"zero window probe", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          {A, ACK, 1, 1, 1000, 1000, PASS},
          {B, ACK, 1, 1001, 0, 0, PASS},
          {A, ACK, 1001, 1, 2, 1000, WINDOW},
          {A, ACK, 1001, 1, 1, 1000, PASS},
          {B, ACK, 1, 1001, 0, 0, PASS},
          {A, ACK, 1001, 1, 1, 1000, PASS},
          {A, ACK, 1000, 1, 0, 1000, PASS},
          {B, ACK, 1, 1002, 0, 500, PASS},
          {A, ACK, 1002, 1, 500, 1000, PASS, "EE"},
          END}},
    {"never a window", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, SYN, 0, 0, 0, 1000, PASS},
          {B, SYN | ACK, 0, 1, 0, 0, PASS},
          {A, ACK, 1, 1, 0, 1000, PASS},
          {A, ACK, 0, 1, 0, 1000, PASS},
          {A, ACK, 1, 1, 1, 1000, PASS},
          {A, ACK, 1, 1, 2, 1000, WINDOW, "EE"},
          END}},

    {"closed by the caller", STRICT, MOAT_T_TCP_CLOSED, ROWS{HANDSHAKE, DATA, CLOSE, END}},
    {"closed by the called", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {B, FIN | ACK, 201, 101, 10, 1000, PASS, "EC"},
          {A, FIN | ACK, 101, 212, 0, 1000, PASS, "CD"},
          {B, ACK, 212, 102, 0, 1000, PASS, "DD"},
          END}},
    {"closed by both at once", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS, "CE"},
          {B, FIN | ACK, 201, 101, 0, 1000, PASS, "CC"},
          {A, ACK, 102, 202, 0, 1000, PASS, "CD"},
          {B, ACK, 202, 102, 0, 1000, PASS, "DD"},
          END}},
    {"half closed", STRICT, MOAT_T_TCP_CLOSING,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS, "CE"},
          {B, ACK, 201, 101, 500, 1000, PASS, "CE"},
          {A, ACK, 102, 701, 0, 1000, PASS, "CE"},
          {B, ACK, 701, 102, 500, 1000, PASS, "DE"},
          {A, ACK, 102, 1201, 0, 1000, PASS, "DE"},
          END}},
    {"one FIN acknowledged", STRICT, MOAT_T_TCP_FIN_WAIT,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS},
          {B, FIN | ACK, 201, 102, 0, 1000, PASS, "DC"},
          END}},
    {"data behind a FIN", STRICT, MOAT_T_TCP_CLOSING,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 10, 1000, PASS, "CE"},
          {A, ACK, 112, 201, 1, 1000, STATE},
          {A, ACK, 111, 201, 2, 1000, STATE},
          {A, FIN | ACK, 112, 201, 0, 1000, STATE},
          {A, ACK, 101, 201, 10, 1000, PASS},
          {A, FIN | ACK, 101, 201, 10, 1000, PASS},
          {A, FIN | ACK, 111, 201, 0, 1000, PASS, "CE"},
          END}},
    {"a FIN needs no room", STRICT, MOAT_T_TCP_CLOSING,
     ROWS{HANDSHAKE,
          {A, FIN | ACK, 1, 1, 1001, 1000, WINDOW},
          {A, FIN | ACK, 1, 1, 1000, 1000, PASS, "CE"},
          {A, FIN | ACK, 1001, 1, 0, 1000, PASS, "CE"},
          {A, ACK, 1002, 1, 1, 1000, WINDOW, "CE"},
          END}},
    {"urgent data", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          {A, ACK | MOAT_TCP_URG, 1, 1, 10, 1000, PASS, "EE"},
          {A, ACK | MOAT_TCP_URG | MOAT_TCP_PSH, 11, 1, 10, 1000, PASS, "EE"},
          {B, ACK, 1, 21, 0, 1000, PASS, "EE"},
          END}},
    {"a FIN overtakes data", STRICT, MOAT_T_TCP_CLOSING,
     ROWS{HANDSHAKE,
          {A, FIN | ACK, 501, 1, 0, 1000, PASS, "CE"},
          {A, ACK, 1, 1, 500, 1000, PASS},
          {B, ACK, 1, 501, 0, 1000, PASS, "CE"},
          {B, ACK, 1, 502, 0, 1000, PASS, "DE"},
          END}},
    {"late acknowledgements", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          CLOSE,
          {B, ACK, 201, 101, 0, 1000, PASS},
          {A, ACK, 101, 201, 0, 1000, PASS},
          {B, FIN | ACK, 201, 102, 0, 1000, PASS},
          {A, ACK, 102, 202, 0, 1000, PASS},
          {A, ACK, 1, 1, 100, 1000, PASS, "DD"},
          {A, ACK, 102, 203, 0, 1000, WINDOW},
          END}},

    {"reset, exact", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE, DATA, {A, RST, 101, 0, 0, 0, PASS, "RR"}, END}},
    {"reset, within the window only", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {A, RST, 102, 0, 0, 0, UNBEL, "EE"},
          {A, RST, 1101, 0, 0, 0, UNBEL, "EE"},
          {A, RST, 1102, 0, 0, 0, WINDOW},
          {A, RST, 100, 0, 0, 0, WINDOW}, /* B has acknowledged 101 */
          {B, ACK, 201, 101, 0, 1000, PASS, "EE"},
          {B, RST | ACK, 201, 102, 0, 0, WINDOW, "EE"},
          {B, RST | ACK, 201, 101, 0, 0, PASS, "RR"},
          END}},
    {"reset by a stack that acknowledges nothing", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE, DATA, {B, RST, 201, 0, 0, 0, PASS, "RR"}, END}},
    {"reset, exact to an end that missed data", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, ACK, 101, 201, 300, 1000, PASS},
          {A, RST, 102, 0, 0, 0, UNBEL, "EE"},
          {A, RST, 400, 0, 0, 0, UNBEL, "EE"},
          {A, RST, 100, 0, 0, 0, WINDOW, "EE"},
          {A, RST, 101, 0, 0, 0, UNBEL, "EE"},
          END}},
    {"reset, where the window has shrunk", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          {A, ACK, 1, 1, 1000, 1000, PASS},
          {B, ACK, 1, 801, 0, 200, PASS},
          {A, RST, 0, 0, 0, 0, WINDOW, "EE"},
          {A, RST, 2, 0, 0, 0, UNBEL, "EE"}, /* below what B has acknowledged */
          {A, RST, 801, 0, 0, 0, UNBEL, "EE"},
          END}},
    {"after a reset", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {A, RST, 101, 0, 0, 0, PASS, "RR"},
          {A, RST, 101, 0, 0, 0, UNBEL, "RR"},
          {B, ACK, 201, 101, 0, 1000, UNBEL},
          {B, ACK, 201, 101, 10, 1000, UNBEL},
          {B, ACK, 1, 101, 200, 1000, UNBEL},
          {B, FIN | ACK, 201, 101, 0, 1000, UNBEL},
          {B, ACK, 201, 101, 1001, 1000, WINDOW},
          {B, ACK, 201, 102, 0, 1000, WINDOW},
          {A, ACK, 101, 201, 10, 1000, UNBEL},
          {A, SYN | ACK, 101, 201, 0, 1000, STATE, "RR"},
          {B, SYN | ACK, 201, 101, 0, 1000, STATE, "RR"},
          {B, SYN | ACK, 150, 101, 0, 1000, UNBEL, "RR"}, /* an old one */
          {A, RST, 101, 0, 0, 0, UNBEL, "RR"},
          END}},
    {"a client that forgot uses its port again", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, SYN, 90000, 0, 0, 1000, UNBEL, "EE"},
          {B, ACK, 201, 101, 0, 1000, PASS, "EE"}, /* the challenge */
          {A, RST, 101, 0, 0, 0, PASS, "RR"},
          {A, SYN, 90000, 0, 0, 1000, PASS, "SN"},
          {B, SYN | ACK, 7000, 90001, 0, 1000, PASS, "ES"},
          {A, ACK, 90001, 7001, 0, 1000, PASS, "EE"},
          END},
     VM_B},
    {"a VM that forgot uses its port again", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, SYN, 5000, 0, 0, 1000, UNBEL, "EE"}, /* may be an old one */
          {A, SYN, 90000, 0, 0, 1000, PASS, "SN"},
          {B, ACK, 201, 101, 0, 1000, UNBEL, "SN"}, /* the challenge */
          {A, RST, 101, 0, 0, 0, UNBEL, "SN"},
          {A, SYN, 90000, 0, 0, 1000, PASS, "SN"},
          {B, SYN | ACK, 7000, 90001, 0, 1000, PASS, "ES"},
          {A, ACK, 90001, 7001, 0, 1000, PASS, "EE"},
          END},
     VM_A},
    {"a VM that forgot is called again", STRICT, MOAT_T_TCP_OPENING,
     ROWS{HANDSHAKE,
          DATA,
          {A, SYN, 90000, 0, 0, 1000, UNBEL, "EE"},
          {B, SYN | ACK, 90000, 90001, 0, 1000, WINDOW, "RR"},
          {A, SYN, 90000, 0, 0, 1000, PASS, "SN"},
          {B, SYN | ACK, 90000, 90001, 0, 1000, PASS, "ES"},
          END},
     VM_B},
    {"a VM that forgot is called in vain", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {A, SYN, 90000, 0, 0, 1000, UNBEL, "EE"},
          {B, RST | ACK, 0, 102, 0, 1000, WINDOW, "EE"},
          {B, RST | ACK, 0, 90001, 0, 1000, WINDOW, "RR"},
          {A, SYN, 90000, 0, 0, 1000, PASS, "SN"},
          {B, RST | ACK, 0, 90001, 0, 1000, PASS, "RR"},
          END},
     VM_B},
    {"nobody else is believed to have forgotten", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, SYN | ACK, 90000, 90001, 0, 1000, WINDOW, "EE"},
          {B, SYN | ACK, 90000, 90001, 0, 1000, WINDOW, "EE"},
          {B, RST | ACK, 0, 90001, 0, 1000, WINDOW, "EE"},
          {B, SYN, 90000, 0, 0, 1000, STATE, "EE"},
          END},
     VM_A},
    {"nor is a SYN of a half closed one believed", STRICT, MOAT_T_TCP_CLOSING,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS, "CE"},
          {A, SYN, 90000, 0, 0, 1000, UNBEL, "CE"},
          {B, SYN, 90000, 0, 0, 1000, STATE, "CE"},
          END},
     VM_B},
    {"reset of a half closed one", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS},
          {A, RST, 102, 0, 0, 0, PASS, "RR"},
          END}},
    {"opened again after a close", STRICT, MOAT_T_TCP_FIRST,
     ROWS{HANDSHAKE,
          DATA,
          CLOSE,
          {B, SYN | ACK, 900, 9, 0, 1000, STATE, "DD"},
          {B, SYN, 9000, 0, 0, 1000, PASS, "NS"},
          END}},
    {"opened again though its FIN was not seen acknowledged", STRICT, MOAT_T_TCP_FIRST,
     ROWS{HANDSHAKE,
          DATA,
          {B, FIN | ACK, 201, 101, 0, 1000, PASS, "EC"},
          {A, ACK, 101, 202, 0, 1000, PASS, "ED"},
          {A, SYN, 9000, 0, 0, 1000, UNBEL, "ED"},
          {A, FIN | ACK, 101, 202, 0, 1000, PASS, "CD"},
          {B, SYN, 9000, 0, 0, 1000, STATE, "CD"},
          {A, SYN, 101, 0, 0, 1000, UNBEL, "CD"}, /* its own FIN is there */
          {A, SYN, 103, 0, 0, 1000, PASS, "SN"},
          END}},
    {"opened again by the end that was called", STRICT, MOAT_T_TCP_FIRST,
     ROWS{HANDSHAKE,
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS},
          {B, FIN | ACK, 201, 102, 0, 1000, PASS, "DC"},
          {A, SYN, 9000, 0, 0, 1000, UNBEL, "DC"},
          {B, SYN, 202, 0, 0, 1000, STATE, "DC"},
          {B, SYN, 203, 0, 0, 1000, PASS, "NS"},
          END}},
    {"opened again after a reset", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE, {A, RST, 1, 0, 0, 0, PASS}, HANDSHAKE, DATA, END}},
    {"not opened again while it lives", STRICT, MOAT_T_TCP_FIN_WAIT,
     ROWS{HANDSHAKE,
          {A, SYN, 9000, 0, 0, 1000, UNBEL, "EE"},
          {B, SYN, 9000, 0, 0, 1000, STATE, "EE"},
          DATA,
          {A, FIN | ACK, 101, 201, 0, 1000, PASS},
          {B, FIN | ACK, 201, 102, 0, 1000, PASS, "DC"},
          {A, SYN, 9000, 0, 0, 1000, UNBEL, "DC"},
          {B, SYN, 100, 0, 0, 1000, STATE, "DC"},
          END}},

    {"picked up", LOOSE, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, RST, 1, 0, 0, 0, NO_SES},
          {A, SYN | ACK, 1, 1, 0, 1000, NO_SES},
          {A, ACK, 5001, 7001, 100, 1000, PASS, "EE"},
          {A, ACK, 5101, 7001, 100, 1000, PASS},
          {B, ACK, 7001, 5201, 3000, 500, PASS},
          {A, ACK, 5201, 10001, 0, 1000, PASS},
          {A, ACK, 5201, 10001, 40000, 1000, PASS},
          {B, ACK, 10001, 45201, 0, 500, PASS},
          {B, ACK, 10001, 1u << 30, 0, 500, WINDOW},
          {A, ACK, 1u << 31, 10001, 0, 500, WINDOW},
          END}},
    {"picked up: the silent end is learnt of what fits", LOOSE, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, ACK, 5001, 7001, 100, 10, PASS},
          {B, ACK, 7001 + 163841, 5101, 0, 500, WINDOW},
          {B, ACK, 7001 - 163841u, 5101, 0, 500, WINDOW},
          {B, ACK, 7001 + (1u << 31), 5101, 0, 500, WINDOW},
          {B, ACK, 7001, 5101 + (1u << 30), 0, 500, WINDOW},
          {B, ACK, 7001, 5101, 163840, 500, PASS},
          {A, ACK, 5101, 7001 + 163840, 0, 1, PASS},
          END}},
    {"picked up: of the caller too", LOOSE, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, ACK, 5001, 7001, 100, 1000, PASS},
          {B, ACK, 7001, 5901, 100, 1000, PASS},
          {A, ACK, 5901, 7101, 100, 1000, PASS},
          END}},
    {"picked up: a retransmission comes first", LOOSE, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, ACK, 5001, 7001, 100, 1000, PASS},
          {B, ACK, 6001, 5101, 500, 500, PASS},
          {A, ACK, 5101, 7001, 0, 1000, PASS},
          {B, ACK, 7001, 5101, 500, 500, PASS, "EE"},
          END}},
    {"picked up: who spoke first may call again", LOOSE, MOAT_T_TCP_CLOSED,
     ROWS{{A, ACK, 5001, 7001, 100, 1000, PASS},
          {A, SYN, 90000, 0, 0, 1000, UNBEL, "EE"},
          {B, SYN, 90000, 0, 0, 1000, STATE, "EE"},
          {B, ACK, 7001, 5101, 0, 1000, PASS},
          {A, RST, 5100, 0, 0, 0, UNBEL, "EE"},
          {A, RST, 5101, 0, 0, 0, PASS, "RR"},
          END},
     VM_B},
    {"picked up while closing", LOOSE, MOAT_T_TCP_CLOSED,
     ROWS{{A, FIN | ACK, 101, 201, 0, 1000, PASS, "CE"},
          {B, FIN | ACK, 201, 102, 0, 1000, PASS, "DC"},
          {A, ACK, 102, 202, 0, 1000, PASS, "DD"},
          END}},
    {"picked up, with a window of 0", LOOSE, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, ACK, 5001, 7001, 100, 0, PASS},
          {B, ACK, 7000, 5101, 0, 500, PASS},
          {A, ACK, 5101, 7001, 0, 0, PASS},
          {B, ACK, 7001, 5101, 1, 500, PASS, "EE"},
          END}},

    {"imported: moved on meanwhile", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, ACK, 40001, 201, 100, 1000, WINDOW},
          {A, ACK, 40001, 201, 100, 1000, PASS, "EE", LENIENT},
          {B, ACK, 30001, 40101, 100, 1000, PASS, "EE", LENIENT},
          {A, ACK, 40101, 30101, 100, 1000, PASS},
          {B, ACK, 30101, 40201, 100, 1000, PASS},
          END}},
    {"imported: reset meanwhile", STRICT, MOAT_T_TCP_CLOSED,
     ROWS{HANDSHAKE,
          DATA,
          {A, RST, 40001, 0, 0, 0, WINDOW},
          {A, RST, 40001, 0, 0, 0, UNBEL, "EE", LENIENT},
          {A, RST, 70000, 0, 0, 0, WINDOW, "EE", LENIENT},
          {A, RST, -70000u, 0, 0, 0, WINDOW, "EE", LENIENT},
          {A, RST, 101, 0, 0, 0, PASS, "RR", LENIENT},
          END}},
    {"imported: not by any distance", STRICT, MOAT_T_TCP_ESTABLISHED,
     ROWS{HANDSHAKE,
          DATA,
          {A, ACK, 70000, 201, 0, 1000, WINDOW, "", LENIENT},
          {A, ACK, 101, 70000, 0, 1000, WINDOW, "", LENIENT},
          {A, ACK, -70000u, 201, 0, 1000, WINDOW, "", LENIENT},
          {A, ACK, 101, -140000u, 0, 1000, WINDOW, "", LENIENT},
          {B, ACK, 1u << 31, 101, 0, 1000, WINDOW, "", LENIENT},
          END}},
    {"picked up, then imported", LOOSE, MOAT_T_TCP_ESTABLISHED,
     ROWS{{A, ACK, 5001, 7001, 100, 65535, PASS},
          {B, ACK, 7001, 5101, 100, 65535, PASS},
          {A, ACK, 5001 - 100000u, 7101, 100, 65535, PASS, "", LENIENT},
          {A, ACK, 5001 + 100000, 7101, 100, 65535, PASS, "", LENIENT},
          {B, ACK, 7001 - 100000u, 5101, 100, 65535, PASS, "", LENIENT},
          {B, ACK, 7001 + 100000, 5101, 100, 65535, PASS, "EE", LENIENT},
          END}},
};

#define N_CONVERSATIONS (sizeof conversations / sizeof *conversations)

static void check_row(const struct conversation *c, const struct row *r, struct observer *o,
                      const uint32_t isn[2], bool mirror)
{
    static const char letters[] = "NSECDR";
    unsigned dir = r->dir ^ mirror;
    struct moat_tcp_seg s = {.seq = isn[r->dir] + r->seq,
                             .ack = r->flags & ACK ? isn[!r->dir] + r->ack : r->ack,
                             .len = r->len,
                             .win = r->win,
                             .flags = r->flags,
                             .wscale = r->wscale};
    enum moat_reason reason = observe(o, dir, &s, r->lenient);

    ck_assert_msg(reason == r->expect, "%s, row %d, from %x: %s, not %s", c->name,
                  (int)(r - c->rows), isn[0], moat_reason_name(reason),
                  moat_reason_name(r->expect));
    for (int i = 0; i < 2 && *r->state; i++)
        ck_assert_msg(letters[o->side[i ^ mirror].state] == r->state[i], "%s, row %d: %c is in %c",
                      c->name, (int)(r - c->rows), 'A' + i, letters[o->side[i ^ mirror].state]);
}

START_TEST(conversation)
{
    static const uint32_t isns[][2] = {
        {1000000, 2000000}, {0, 0},           {-1u, -1u},           {-50u, -150u},
        {-5051u, -7051u},   {-30000u, 5},     {1u << 31, -40000u},  {(1u << 31) - 60u, -1u},
        {-12000u, -8000u},  {-70000u, -100u}, {-100u, 0x7fffff80u},
    };
    const struct conversation *c = &conversations[_i];

    for (size_t i = 0; i < 2 * sizeof isns / sizeof *isns; i++) {
        struct observer o = {.loose = c->loose};
        const struct row *r;

        if (c->vm == (i & 1 ? VM_A : VM_B))
            continue;

        for (r = c->rows; r->expect != LAST_ROW; r++)
            check_row(c, r, &o, isns[i / 2], i & 1);
        if (o.exists)
            ck_assert_msg(moat_tcp_timer(o.side) == c->timer, "%s: timer %d", c->name,
                          moat_tcp_timer(o.side));
    }
}
END_TEST

/* What a session's record may hold when it comes with a migration. */
START_TEST(valid_records)
{
    static const struct {
        uint8_t state[2], wscale[2];
        bool valid;
    } table[] = {
        {{S, N}, {0, 0}, true},        {{N, S}, {0x80, 0}, true}, {{E, E}, {0x87, 0x8e}, true},
        {{R, R}, {0, 0}, true},        {{N, N}, {0, 0}, false},   {{R + 1, E}, {0, 0}, false},
        {{E, R + 1}, {0, 0}, false},   {{E, 255}, {0, 0}, false}, {{E, E}, {0x8f, 0}, false},
        {{E, E}, {0, 0x0f}, false},    {{E, E}, {0x90, 0}, true}, {{E, E}, {0x8e, 0xfe}, true},
        {{E, E}, {0x90, 0x10}, false}, {{E, N}, {0, 0}, false},   {{N, R}, {0, 0}, false},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct moat_ses_side side[2] = {{.state = table[i].state[0], .wscale = table[i].wscale[0]},
                                        {.state = table[i].state[1], .wscale = table[i].wscale[1]}};

        ck_assert_msg(moat_tcp_valid(side) == table[i].valid, "record %zu", i);
    }
}
END_TEST

START_TEST(timers)
{
    enum {
        FI = MOAT_T_TCP_FIRST,
        OP = MOAT_T_TCP_OPENING,
        ES = MOAT_T_TCP_ESTABLISHED,
        CL = MOAT_T_TCP_CLOSING,
        FW = MOAT_T_TCP_FIN_WAIT,
        OV = MOAT_T_TCP_CLOSED,
    };
    /* N S E C D R, in each direction */
    static const uint8_t table[6][6] = {
        {FI, FI, FI, CL, CL, OV}, {0, OP, OP, CL, CL, OV}, {0, 0, ES, CL, CL, OV},
        {0, 0, 0, FW, FW, OV},    {0, 0, 0, 0, OV, OV},    {0, 0, 0, 0, 0, OV},
    };

    for (uint8_t a = N; a <= R; a++) {
        for (uint8_t b = a; b <= R; b++) {
            struct moat_ses_side side[2] = {{.state = a}, {.state = b}};
            struct moat_ses_side turned[2] = {side[1], side[0]};
            struct moat_tcp_seg syn = {.flags = SYN}, ack = {.flags = SYN | ACK};
            struct moat_tcp_seg next = {.seq = 1, .flags = SYN};
            bool over = b == R || a == D;

            ck_assert_uint_eq(moat_tcp_timer(side), table[a][b]);
            ck_assert_uint_eq(moat_tcp_timer(turned), table[a][b]);
            ck_assert_int_eq(moat_tcp_half_open(side), b <= E && a < E);
            ck_assert_int_eq(moat_tcp_half_open(turned), b <= E && a < E);
            for (unsigned d = 0; d < 2; d++) {
                ck_assert_int_eq(moat_tcp_reopens(side, d, &syn), over);
                ck_assert(!moat_tcp_reopens(side, d, &ack));
            }
            /* Above the last number: the end in C only. */
            ck_assert_int_eq(moat_tcp_reopens(side, 0, &next), over || (a == C && b == D));
            ck_assert_int_eq(moat_tcp_reopens(turned, 1, &next), over || (a == C && b == D));
            ck_assert_int_eq(moat_tcp_reopens(side, 1, &next), over);
        }
    }
}
END_TEST

/* Sequence numbers that ICMP errors quote. */
START_TEST(was_sent)
{
    static const struct {
        uint8_t dir;
        uint32_t seq;
        bool sent;
    } syn[] = {{A, 0, true}, {A, 1, true}, {A, 2, false}, {A, -1u, false}, {B, 0, false}},
      live[] = {{A, 0, true},
                {A, 101, true},
                {A, 102, false},
                {A, 101 - 66000u, true},
                {A, 100 - 66000u, false},
                {A, 1u << 31, false},
                {B, 201, true},
                {B, 202, false},
                {B, 201 - 66000u, true},
                {B, 200 - 66000u, false}};
    static const struct row rows[] = {HANDSHAKE, DATA};
    static const uint32_t isns[][2] = {{1000000, 2000000}, {-50u, -150u}, {30000, 0}};

    for (size_t i = 0; i < sizeof isns / sizeof *isns; i++) {
        struct conversation c = {.name = "was sent"};
        struct observer o = {.loose = false};

        check_row(&c, &rows[0], &o, isns[i], false);
        for (size_t k = 0; k < sizeof syn / sizeof *syn; k++)
            ck_assert_msg(moat_tcp_was_sent(o.side, syn[k].dir, isns[i][syn[k].dir] + syn[k].seq) ==
                              syn[k].sent,
                          "SYN, %zu", k);
        for (size_t k = 1; k < sizeof rows / sizeof *rows; k++)
            check_row(&c, &rows[k], &o, isns[i], false);
        for (size_t k = 0; k < sizeof live / sizeof *live; k++)
            ck_assert_msg(moat_tcp_was_sent(o.side, live[k].dir,
                                            isns[i][live[k].dir] + live[k].seq) == live[k].sent,
                          "live, %zu", k);
    }
}
END_TEST

/* Of a session that was picked up, what it has sent before is not known. */
START_TEST(was_sent_is_lenient_where_it_guesses)
{
    struct moat_ses_side side[2];
    struct moat_tcp_seg s = {.seq = 5000000, .ack = 7000000, .len = 100, .win = 1, .flags = ACK};

    ck_assert_int_eq(moat_tcp_open(side, A, &s, true), MOAT_R_NONE);
    ck_assert(moat_tcp_was_sent(side, A, 5000100 + 66000));
    ck_assert(moat_tcp_was_sent(side, B, 7000000 + 16384));
    ck_assert(moat_tcp_was_sent(side, B, 7000000 - 16384));
    ck_assert(!moat_tcp_was_sent(side, B, 7000000 + (1u << 29)));
    ck_assert(!moat_tcp_was_sent(side, A, 5000100 - (1u << 31)));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("state_tcp");
    TCase *tc = tcase_create("tcp");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, conversation, 0, (int)N_CONVERSATIONS);
    tcase_add_test(tc, valid_records);
    tcase_add_test(tc, timers);
    tcase_add_test(tc, was_sent);
    tcase_add_test(tc, was_sent_is_lenient_where_it_guesses);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
