/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CLI_PACKET_H
#define MOAT_CLI_PACKET_H 1

/* Packets and sessions in words.  Functions that return char * return memory that the caller
 * frees. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/flow.h"
#include "openvswitch/json.h"

const char *packet_direction(unsigned dir);
const char *packet_verdict(int64_t verdict);

/* "tcp 10.0.0.5:40000 -> 10.0.0.6:5432 S", from who sent it to who gets it.  tcp_flags: as on the
 * wire, for TCP. */
char *packet_text(const struct moat_flow *, unsigned tcp_flags);

struct json *packet_flow_json(const struct moat_flow *);

/* What moat_ses_side.state means (datapath/state_tcp.h, state_other.h). */
const char *session_state(unsigned proto, unsigned state);
bool session_is_state(const char *name);
/* "local/remote", or one of them if they are the same. */
char *session_states(unsigned proto, unsigned local, unsigned remote);

/* MOAT_SES_F_* as an array and, if not NULL, as "a,b". */
struct json *session_flags_json(unsigned flags, char **text);

#endif /* control/cli/packet.h */
