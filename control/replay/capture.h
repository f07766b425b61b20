/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_REPLAY_CAPTURE_H
#define MOAT_REPLAY_CAPTURE_H 1

/* Capture files: pcap and pcapng, read by libpcap. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One captured packet. */
struct moat_captured {
    uint64_t number;     /* in the file, from 1 */
    uint64_t time_us;    /* since 1970; 0 if the file says something before that */
    const uint8_t *data; /* from the Ethernet header on, or from the network header on */
    uint32_t len, total; /* bytes at data; of the whole, >= len */
    bool ethernet;
    /* If not: */
    uint16_t ethertype; /* what data is */
    bool has_source;    /* the sender's MAC is known */
    bool to_all;        /* it was sent to a broadcast or multicast MAC */
    uint8_t source[6];
};

/* False: stop reading. */
typedef bool moat_captured_fn(void *aux, const struct moat_captured *);

/* Reads a file ("-": standard input) to its end and calls fn() for each packet.  0, or -EIO: the
 * file cannot be opened or read, or is broken from some packet on (those before it were given),
 * or -EPROTONOSUPPORT: packets of a kind that has no Ethernet or IP.  The reason is in err. */
int moat_capture_read(const char *file, moat_captured_fn *fn, void *aux, char *err,
                      size_t err_size);

#endif /* control/replay/capture.h */
