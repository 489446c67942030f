// node-postgres knows one host: node_postgres.js HOST PORT USER DATABASE, a member's rw port (or a Service in front of it).
//
// A pool; connections to a former primary are cut by the proxy, and new ones wait there for the next. Ends once the
// primary is another server than at first, and prints both.
const { Pool } = require('pg')

const [host, port, user, database] = process.argv.slice(2)
const pool = new Pool({ host, port: Number(port), user, database, max: 4, connectionTimeoutMillis: 30000 })
// An idle connection that ends is no reason to end with it.
pool.on('error', () => {})

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

async function main() {
  let first
  for (;;) {
    try {
      const sql = "INSERT INTO example VALUES ('node') RETURNING host(inet_server_addr()) AS server"
      const { server } = (await pool.query(sql)).rows[0]
      if (server !== first) {
        console.log(server)
        if (first) return pool.end()
        first = server
      }
    } catch (error) {
      // Whether that row was written is not known.
    }
    await pause(200)
  }
}

main()
