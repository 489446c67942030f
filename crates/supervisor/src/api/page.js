// Puts what has changed into the page every two seconds, while somebody looks at it. Without this script the page
// loads itself again instead.
(() => {
  const away = document.getElementById("away");
  const parts = ["now", "members", "changes"];
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("ui", { cache: "no-store", signal: AbortSignal.timeout(4000) });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const id of parts) {
        const [old, next] = [document.getElementById(id), fresh.getElementById(id)];
        // What is the same stays: a selection, a scroll position, a reader's place in it.
        if (old && next && old.innerHTML !== next.innerHTML) old.innerHTML = next.innerHTML;
      }
      document.title = fresh.title;
      away.hidden = true;
    } catch {
      away.hidden = false;
    }
  };
  setInterval(refresh, 2000);
  document.addEventListener("visibilitychange", refresh);
})();
