/* SPDX-License-Identifier: Apache-2.0 */
// What the parts of "traffic" share: addresses, clocks, bytes that can be checked.
#ifndef TRAFFIC_H
#define TRAFFIC_H 1

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

struct end {
    struct sockaddr_storage ss;
    socklen_t len;
};

// IPv4 or IPv6 address and port; ends the program if it is neither.
struct end end_parse(const char *addr, const char *port);
// The same port of all addresses, of that family.
struct end end_any(int family, int port);
// A number within bounds; ends the program if it is none.
long number(const char *text, long least, long most);

_Noreturn __attribute__((format(printf, 1, 2))) void die(const char *format, ...);
int64_t now_ms(void);

// Byte i of stream `seed`: every window of it looks different, so that what is lost, doubled
// or moved shows.
void pattern_fill(uint8_t *to, size_t n, uint64_t seed, uint64_t at);
bool pattern_is(const uint8_t *bytes, size_t n, uint64_t seed, uint64_t at);

// "ok", "timeout", or the errno as a name that scripts can compare ("ECONNREFUSED").
const char *outcome(int error);

// Goes on in the background with the socket `keep`; the caller's shell gets its prompt back.
void background(int keep);

// A TCP connection from source port `sport` (0: any) within timeout_ms: the socket, or -errno.
int tcp_open(const struct end *to, int sport, int timeout_ms);
// The local port of a socket.
int local_port(int fd);

// Commands: argv[0] is the command's name. They return the exit code.
int cmd_serve(int argc, char **argv);
int cmd_bulk(int argc, char **argv);
int cmd_tcp(int argc, char **argv);
int cmd_hold(int argc, char **argv);
int cmd_udp_echo(int argc, char **argv);
int cmd_udp(int argc, char **argv);
int cmd_ping(int argc, char **argv);
int cmd_syn_flood(int argc, char **argv);

#endif
